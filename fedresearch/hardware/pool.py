"""Clients that run on several workers at once: the assignment of clients, and the replacement of dead workers."""

import logging
import math
import time
from abc import abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from flwr.app import Context, Message, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedresearch.federation.client_app import Clients
from fedresearch.federation.flower import client_error
from fedresearch.hardware.ordered import OrderedGrid

log = logging.getLogger("fedresearch")

# A client counts as failed in a round after it has killed this many workers.
_MAX_DEATHS = 3


class WorkerDied(Exception):
    """A worker has died; the message contains the cause."""


class Worker(Protocol):
    """A process, here or elsewhere, that runs its tasks one after another in the order of submission."""

    name: str
    """A description with which a user can find it, such as its process id."""

    tasks: deque[int]
    """Its unanswered tasks; it works on the first."""

    def submit(self, task: int, metadata: Metadata, content: Any, context: Context) -> None:
        """Submit a message, whose content was published, or raise :class:`WorkerDied`."""

    def result(self) -> tuple[Message, RecordDict]:
        """Return the reply to its first task, and the client's state after it, or raise :class:`WorkerDied`."""

    def stop(self) -> None:
        """Stop it, even during a task."""


class PoolGrid(OrderedGrid):
    """A Grid whose clients run on workers: the longest first, each on the first free worker.

    A dead worker is replaced, and its client runs again from its previous state, so that the round's numbers stay the
    same. A client whose workers die repeatedly gets an error reply, like a client that raises. A warning names a client
    that does not answer, and the Grid continues to wait for it.

    Attributes
    ----------
    warn_after_s : float
        Seconds after which a warning names a client that has not answered.
    """

    warn_after_s: float = 600

    def __init__(self, client_app: ClientApp, num_supernodes: int, run_config: UserConfig | None = None) -> None:
        super().__init__(client_app, num_supernodes, run_config)
        self._cost = client_app.cost if isinstance(client_app, Clients) else lambda _: 1
        self._workers: list[Any] = []

    @abstractmethod
    def _start_missing(self) -> None:
        """Start the missing workers, as many as there is room for."""

    @abstractmethod
    def _publish(self, content: RecordDict) -> Any:
        """Store a content where every worker can read it."""

    @abstractmethod
    def _ready(self) -> Iterable[Worker]:
        """Wait for a limited time, and return the workers that have a result or have died."""

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        contents = {id(message.content): message.content for message in messages}
        published = {key: self._publish(content) for key, content in contents.items()}
        # A client's messages run one after another, each from the state after the previous one.
        node_tasks: dict[int, deque[int]] = defaultdict(deque)
        for task, message in enumerate(messages):
            node_tasks[message.metadata.dst_node_id].append(task)
        first = [tasks.popleft() for tasks in node_tasks.values()]
        waiting = deque(sorted(first, key=lambda task: -self._cost(self._partition_of(messages[task]))))
        replies: dict[int, Message] = {}
        deaths: Counter[int] = Counter()
        started: dict[int, float] = {}

        def finish(task: int, reply: Message) -> None:
            replies[task] = reply
            node_id = messages[task].metadata.dst_node_id
            if node_tasks[node_id]:
                waiting.appendleft(node_tasks[node_id].popleft())

        def replace(worker: Worker, reason: str) -> None:
            self._workers.remove(worker)
            self._start_missing()
            for task in reversed(worker.tasks):
                waiting.appendleft(task)
            if not worker.tasks:
                return
            task = worker.tasks[0]
            started.pop(task, None)
            deaths[task] += 1
            partition_id = self._partition_of(messages[task])
            log.warning("a worker died (%s) while it ran the client of partition %s", reason, partition_id)
            if deaths[task] == _MAX_DEATHS:
                waiting.popleft()
                finish(
                    task,
                    client_error(f"{_MAX_DEATHS} workers died while they ran it ({reason})", reply_to=messages[task]),
                )

        def submit_waiting() -> None:
            # While many tasks wait, a worker has a second one queued, so that it is never idle.
            for depth in (1, 2):
                for worker in list(self._workers):
                    if len(worker.tasks) < depth and len(waiting) > (depth - 1) * len(self._workers):
                        task = waiting.popleft()
                        worker.tasks.append(task)
                        content = published[id(messages[task].content)]
                        try:
                            worker.submit(task, messages[task].metadata, content, self._context(messages[task]))
                        except WorkerDied as error:
                            replace(worker, str(error))

        def warn_of_slow_clients() -> None:
            now = time.monotonic()
            for worker in self._workers:
                if worker.tasks and now - started.setdefault(worker.tasks[0], now) > self.warn_after_s:
                    started[worker.tasks[0]] = math.inf  # warn once
                    log.warning(
                        "the client of partition %s has not answered for %.0f s (%s); "
                        "wait, or end the run with Ctrl-C twice",
                        self._partition_of(messages[worker.tasks[0]]),
                        self.warn_after_s,
                        worker.name,
                    )

        self._start_missing()
        while len(replies) < len(messages):
            submit_waiting()
            warn_of_slow_clients()
            for worker in self._ready():
                try:
                    reply, state = worker.result()
                except WorkerDied as error:
                    replace(worker, str(error))
                    continue
                task = worker.tasks.popleft()
                if not reply.has_error():
                    self._keep(messages[task].metadata.dst_node_id, state)
                finish(task, reply)
        return [replies[i] for i in range(len(messages))]
