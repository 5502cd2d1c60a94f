"""The clients on several workers at once: who runs whom, and what happens when a worker dies."""

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

# A client's round is given up when this many workers have died of it.
_MAX_DEATHS = 3


class WorkerDied(Exception):
    """A worker is no more; the text says of what."""


class Worker(Protocol):
    """A process, here or elsewhere, that runs clients one after another in the order in which it is given them."""

    name: str
    """What a user finds it by, such as its process id."""

    tasks: deque[int]
    """What it was given and has not answered; it is at work on the first."""

    def submit(self, task: int, metadata: Metadata, content: Any, context: Context) -> None:
        """Give it a message, whose content was published, or raise :class:`WorkerDied`."""

    def result(self) -> tuple[Message, RecordDict]:
        """Return the reply to its first task, and the client's state after it, or raise :class:`WorkerDied`."""

    def stop(self) -> None:
        """End it, whatever it is doing."""


class PoolGrid(OrderedGrid):
    """A Grid whose clients run on workers: those that take longest first, each on the first worker that is free.

    A worker that dies is replaced, and its client runs again from the state that it had: the round's numbers are the
    same. A client whose workers keep dying is an error reply, as one that raises. One that does not answer is named
    after a while, and waited for.

    Attributes
    ----------
    warn_after_s : float
        Seconds of a client's work after which it is named.
    """

    warn_after_s: float = 600

    def __init__(self, client_app: ClientApp, num_supernodes: int, run_config: UserConfig | None = None) -> None:
        super().__init__(client_app, num_supernodes, run_config)
        self._cost = client_app.cost if isinstance(client_app, Clients) else lambda _: 1
        self._workers: list[Any] = []

    @abstractmethod
    def _renew(self) -> None:
        """Start as many workers as there is room for, and are not there."""

    @abstractmethod
    def _publish(self, content: RecordDict) -> Any:
        """Put a content where every worker can read it."""

    @abstractmethod
    def _ready(self) -> Iterable[Worker]:
        """Wait a while until a worker has a result, or has died, and return those that have."""

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        contents = {id(message.content): message.content for message in messages}
        published = {key: self._publish(content) for key, content in contents.items()}
        # A client's messages wait for each other: each finds the state that the one before left.
        of_node: dict[int, deque[int]] = defaultdict(deque)
        for task, message in enumerate(messages):
            of_node[message.metadata.dst_node_id].append(task)
        first = [tasks.popleft() for tasks in of_node.values()]
        waiting = deque(sorted(first, key=lambda task: -self._cost(self._partition_of(messages[task]))))
        replies: dict[int, Message] = {}
        deaths: Counter[int] = Counter()
        begun: dict[int, float] = {}

        def settle(task: int, reply: Message) -> None:
            replies[task] = reply
            node_id = messages[task].metadata.dst_node_id
            if of_node[node_id]:
                waiting.appendleft(of_node[node_id].popleft())

        def bury(worker: Worker, reason: str) -> None:
            self._workers.remove(worker)
            self._renew()
            for task in reversed(worker.tasks):
                waiting.appendleft(task)
            if not worker.tasks:
                return
            task = worker.tasks[0]
            begun.pop(task, None)
            deaths[task] += 1
            log.warning("a worker died (%s) at the client of partition %s", reason, self._partition_of(messages[task]))
            if deaths[task] == _MAX_DEATHS:
                waiting.popleft()
                settle(task, client_error(f"{_MAX_DEATHS} workers died of it ({reason})", reply_to=messages[task]))

        def give() -> None:
            # While many wait, a worker has its next task at hand when it is done with one.
            for ahead in (1, 2):
                for worker in list(self._workers):
                    if len(worker.tasks) < ahead and len(waiting) > (ahead - 1) * len(self._workers):
                        task = waiting.popleft()
                        worker.tasks.append(task)
                        content = published[id(messages[task].content)]
                        try:
                            worker.submit(task, messages[task].metadata, content, self._context(messages[task]))
                        except WorkerDied as error:
                            bury(worker, str(error))

        def name_the_slow() -> None:
            now = time.monotonic()
            for worker in self._workers:
                if worker.tasks and now - begun.setdefault(worker.tasks[0], now) > self.warn_after_s:
                    begun[worker.tasks[0]] = math.inf  # once
                    log.warning(
                        "the client of partition %s has not answered for %.0f s (%s); "
                        "wait, or end the run with Ctrl-C twice",
                        self._partition_of(messages[worker.tasks[0]]),
                        self.warn_after_s,
                        worker.name,
                    )

        self._renew()
        while len(replies) < len(messages):
            give()
            name_the_slow()
            for worker in self._ready():
                try:
                    reply, state = worker.result()
                except WorkerDied as error:
                    bury(worker, str(error))
                    continue
                task = worker.tasks.popleft()
                if not reply.has_error():
                    self._keep(messages[task].metadata.dst_node_id, state)
                settle(task, reply)
        return [replies[i] for i in range(len(messages))]
