"""Clients that run on several workers at once: the assignment of clients, and the replacement of dead workers."""

import logging
import math
import time
import traceback
from abc import abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

from flwr.app import Context, Message, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedresearch.federation.client_app import Client, Clients
from fedresearch.federation.flower import FIRST_NODE_ID, client_error
from fedresearch.federation.layout import Layout, Rows
from fedresearch.federation.records import arrays_of
from fedresearch.federation.stack import DifferentReply, FoldedReplies, StackedReplies
from fedresearch.hardware.ordered import OrderedGrid, node_name, refuse_hooks

log = logging.getLogger("fedresearch")

# A client counts as failed in a round after it has killed this many workers.
_MAX_DEATHS = 3


class WorkerDied(Exception):
    """A worker has died; the message contains the cause."""


class Answer(NamedTuple):
    """A message to answer, apart from its content."""

    metadata: Metadata
    context: Context


class Train(NamedTuple):
    """A client to train, and the row of the round's block that its model is for."""

    client: Client
    row: int


class Trained(NamedTuple):
    """What a client sends: its model, None if it is in the block, and the rest; and its new state, if it has one."""

    rows: Rows | None
    sent: dict[str, dict[str, NDArray[Any]]]
    metrics: dict[str, Any]
    states: dict[int, RecordDict]


class Worker(Protocol):
    """A process, here or elsewhere, that runs its tasks one after another in the order of submission."""

    name: str
    """A description with which a user can find it, such as its process id."""

    tasks: deque[int]
    """Its unanswered tasks; it works on the first."""

    def submit(self, published: Any, task: "Answer | Train") -> None:
        """Submit a task, whose content was published, or raise :class:`WorkerDied`."""

    def result(self) -> Any:
        """Return the result of its first task, or raise :class:`WorkerDied`.

        It is a reply and the client's state after it, or of a client that trained what :func:`train` returns.
        """

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
        refuse_hooks(client_app)
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

        def submit(worker: Worker, task: int) -> None:
            message = messages[task]
            worker.submit(published[id(message.content)], Answer(message.metadata, self._context(message)))

        node_ids = [message.metadata.dst_node_id for message in messages]
        replies: dict[int, Message] = {}
        for task, found in self._results(node_ids, submit):
            if isinstance(found, str):
                replies[task] = client_error(found, reply_to=messages[task])
                continue
            replies[task], state = found
            if not replies[task].has_error():
                self._keep(node_ids[task], state)
        return [replies[task] for task in range(len(messages))]

    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        published, folded = self._publish(content), stack if isinstance(stack, FoldedReplies) else None
        failed: dict[int, str] = {}
        arrived: dict[int, Any] = {}
        place = 0

        def submit(worker: Worker, task: int) -> None:
            worker.submit(published, Train(self._client(stack.node_ids[task]), task % stack.num_rows))

        with closing(self._results(stack.node_ids, submit, folded.has_row if folded else None)) as results:
            for task, result in results:
                arrived[task] = result
                while place in arrived:  # they are stacked in their order
                    match arrived.pop(place):
                        case DifferentReply() as error:
                            raise error
                        case str(reason):
                            failed[place] = reason
                            if folded:  # then a failure ends the run
                                return failed
                        case Trained(rows, sent, metrics, states):
                            if rows is not None:
                                stack.put_rows(place, rows)
                            stack.put_rest(place, sent, metrics)
                            self._keep_all(states)
                    place += 1
        return failed

    def _results(
        self,
        node_ids: Sequence[int],
        submit: Callable[[Worker, int], None],
        may_start: Callable[[int], bool] | None = None,
    ) -> Generator[tuple[int, Any]]:
        """Yield the numbers of tasks and their results, or why they have none, as they end.

        Parameters
        ----------
        node_ids : sequence of int
            The nodes of the tasks. A node's tasks run one after another, each from the state after the previous one.
        submit : callable
            Submits a task to a worker.
        may_start : callable, optional
            Whether a task may start now. Tasks then start in their order; None: the longest first.
        """
        node_tasks: dict[int, deque[int]] = defaultdict(deque)
        for task, node_id in enumerate(node_ids):
            node_tasks[node_id].append(task)
        waiting = deque(tasks.popleft() for tasks in node_tasks.values())
        if may_start is None:
            waiting = deque(sorted(waiting, key=lambda task: -self._cost(node_ids[task] - FIRST_NODE_ID)))
        finished: deque[tuple[int, Any]] = deque()
        deaths: Counter[int] = Counter()
        started: dict[int, float] = {}

        def finish(task: int, result: Any) -> None:
            finished.append((task, result))
            if following := node_tasks[node_ids[task]]:
                waiting.appendleft(following.popleft())

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
            log.warning("a worker died (%s) while it ran the client of %s", reason, node_name(node_ids[task]))
            if deaths[task] == _MAX_DEATHS:
                waiting.popleft()
                finish(task, f"{_MAX_DEATHS} workers died while they ran it ({reason})")

        def submit_waiting() -> None:
            # While many tasks wait, a worker has a second one queued, so that it is never idle.
            for depth in (1, 2):
                for worker in list(self._workers):
                    if len(worker.tasks) >= depth or len(waiting) <= (depth - 1) * len(self._workers):
                        continue
                    if may_start and not may_start(waiting[0]):
                        return
                    task = waiting.popleft()
                    worker.tasks.append(task)
                    try:
                        submit(worker, task)
                    except WorkerDied as error:
                        replace(worker, str(error))

        def warn_of_slow_clients() -> None:
            now = time.monotonic()
            for worker in self._workers:
                if worker.tasks and now - started.setdefault(worker.tasks[0], now) > self.warn_after_s:
                    started[worker.tasks[0]] = math.inf  # warn once
                    log.warning(
                        "the client of %s has not answered for %.0f s (%s); wait, or end the run with Ctrl-C twice",
                        node_name(node_ids[worker.tasks[0]]),
                        self.warn_after_s,
                        worker.name,
                    )

        self._start_missing()
        num_left = len(node_ids)
        while num_left:
            submit_waiting()
            warn_of_slow_clients()
            for worker in self._ready():
                try:
                    result = worker.result()
                except WorkerDied as error:
                    replace(worker, str(error))
                else:
                    finish(worker.tasks.popleft(), result)
            num_left -= len(finished)
            while finished:  # before the next task of a node, whose state a result may change
                try:
                    yield finished.popleft()
                except GeneratorExit:
                    self._stop_busy()
                    raise

    def _stop_busy(self) -> None:
        """Stop the workers whose results nobody waits for."""
        for worker in [worker for worker in self._workers if worker.tasks]:
            worker.stop()
            self._workers.remove(worker)


def layout_of(clients: Clients, content: RecordDict) -> Layout:
    """Return the places of the arrays that clients send, given what they receive."""
    return Layout(arrays_of(content), clients.parameters)


def train(
    clients: Clients, content: RecordDict, client: Client, layout: Layout, rows: Rows | None = None
) -> Trained | DifferentReply | str:
    """Train a client, with its model in rows of its own, or in a given one; a text is why it failed."""
    node_id = FIRST_NODE_ID + client.partition_id
    one = StackedReplies(
        layout, [node_id], rows or layout.rows(1), lambda _, content: Message(content, 1, ""), node_name
    )
    try:
        states = clients.train_stacked(content, [client], one)
    except DifferentReply as error:
        return error
    except (Exception, SystemExit):
        return traceback.format_exc()
    sent = {key: {name: array[0] for name, array in group.items()} for key, group in one.sent.items()}
    metrics = {name: value for name, (value,) in one.metrics.items()}
    return Trained(None if rows else one.rows, sent, metrics, states)
