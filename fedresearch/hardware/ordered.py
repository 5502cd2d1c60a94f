"""The Grid in partition order that all hardware of one machine or cluster extends."""

import math
import multiprocessing
import pickle
import threading
import traceback
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedresearch.errors import InputError
from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.client_app import Client, Clients
from fedresearch.federation.flower import FIRST_NODE_ID, Run, be_server, client_error, set_message_id, unknown_message
from fedresearch.federation.layout import HeldRows, Layout
from fedresearch.federation.records import NUM_EXAMPLES, UNIFORM, arrays_of
from fedresearch.federation.stack import FoldedReplies, StackedReplies
from fedresearch.federation.update_sums import rows_at_once
from fedresearch.hardware.threads import limit_threads
from fedresearch.local.state_names import hooked

_NO_STATE = RecordDict()


class OrderedGrid(Grid):
    """A Grid that stores the clients' states; node ids, messages and replies are in partition order.

    It is a context manager: clients answer while it is open. The messages of a round share one content, and a client
    that fails keeps its previous state. Our own :class:`Clients` never write into a content and replace the records of
    their state; any other ClientApp receives copies.

    Messages that several threads send at once, as Flower's old servers do, are answered together.

    Torch and NumPy's BLAS run on one thread each, so that the order of sums does not depend on the number of cores.

    Parameters
    ----------
    client_app : ClientApp
        The app of every client.
    num_supernodes : int
        Number of clients. A client without a state uses no memory.
    run_config : mapping, optional
        The clients' ``context.run_config``.

    Attributes
    ----------
    states : dict of int to RecordDict
        The clients' nonempty states by node id.
    """

    def __init__(self, client_app: ClientApp, num_supernodes: int, run_config: UserConfig | None = None) -> None:
        limit_threads(1)
        _reset_foreign_start_method()
        self._client_app = client_app
        self._num_supernodes = num_supernodes
        self._run_config = run_config or {}
        self.states: dict[int, RecordDict] = {}
        self._replies: dict[str, Message] = {}
        self._waiting: deque[Message] = deque()
        self._answering = threading.Lock()
        self._num_messages: Counter[int] = Counter()
        self._run = Run.create_empty(run_id=1)
        be_server(run_id=1)

    def expect(self, num_rounds: int, cohort_size: int) -> None:
        """Learn, before it opens, for how many rounds how many clients train. Only a choice of hardware needs it."""

    def __enter__(self) -> Self:
        """Prepare for messages."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the resources of the clients."""

    def set_run(self, run: Run) -> None:
        """Keep the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Return all node ids in partition order."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_supernodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Call the addressed clients, and return the ids of the messages.

        An id depends only on the node and on the number of its earlier messages.

        Raises
        ------
        ValueError
            If a message names a node outside :meth:`get_node_ids`, has expired, or occurs twice; then nothing is sent.
        """
        messages = list(messages)
        self._check(messages)
        for message in messages:
            node_id = message.metadata.dst_node_id
            set_message_id(message, str(self._num_messages[node_id] * self._num_supernodes + node_id))
            self._num_messages[node_id] += 1
        self._waiting.extend(messages)
        with self._answering:  # the first thread answers the messages of all that wait by then
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            for message, reply in zip(waiting, self._answer(waiting) if waiting else (), strict=True):
                self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages, in the messages' order; each reply can be pulled once.

        For an unknown id, or one whose reply was pulled before, the reply is Flower's error.
        """
        return [
            self._replies.pop(id_) if id_ in self._replies else unknown_message(id_, self._run.run_id)
            for id_ in dict.fromkeys(message_ids)
        ]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies, without waiting.

        The replies to a broadcast of ours, none of whose messages was read, may be stacked.
        """
        app = self._client_app
        if (
            isinstance(messages, Broadcast)
            and not messages.is_read
            and messages.message_type == MessageType.TRAIN
            and isinstance(app, Clients)
            and app.stacks
        ):
            return self._train(app, messages)
        return self.pull_messages(self.push_messages(messages))

    def try_out(self, app: ClientApp, message: Message, context: Context) -> None:
        """Call an app with a message as its clients would here, and discard the reply."""
        app(message, context)

    def _train(self, clients: Clients, messages: Broadcast) -> Iterable[Message]:
        """Return the replies of clients that train, stacked, and store their states."""
        stack = self._stack_for(clients, messages)
        before = [*map(self._client, stack.node_ids)] if clients.channel.stages else []
        failed = self._fill(stack, clients, messages.content)
        if failed:
            errors = [client_error(reason, reply_to=messages[place]) for place, reason in sorted(failed.items())]
            answered = [place for place in range(len(stack)) if place not in failed]
            if isinstance(stack, FoldedReplies) or not answered:
                return errors
            stack = stack.take(answered)
            stack.errors = errors
            before = [before[place] for place in answered] if before else []
        if before:
            self._pass_channel(clients, messages.content, before, stack)
        return stack

    def _pass_channel(
        self, clients: Clients, content: RecordDict, before: Sequence[Client], stack: StackedReplies
    ) -> None:
        """Pass what clients send through the channel, given their states before this round, and store the new ones."""
        for client, node_id, kept in zip(
            before, stack.node_ids, clients.pass_channel(content, before, stack), strict=True
        ):
            if kept is None:
                self._keep(node_id, client.state)
            elif kept:
                self._keep(node_id, RecordDict({**self.states.get(node_id, _NO_STATE), **kept}))

    @abstractmethod
    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        """Put the replies to a content into a stack, store the states, and return by place why clients failed."""

    def _rows(self, layout: Layout, num_rows: int) -> HeldRows:
        """Return rows for the replies of clients that train; those of clients on a GPU stay there."""
        assert isinstance(self._client_app, Clients)
        device = self._client_app.data.x.device
        return layout.rows(num_rows) if device.type == "cpu" else layout.rows_on(device, num_rows)

    def _num_ahead(self) -> int:
        """Return how many replies may arrive while a block of earlier ones is incomplete or being added."""
        return 1

    def _stack_for(self, clients: Clients, messages: Broadcast) -> StackedReplies:
        """Return an empty stack for the replies to messages, which folds them if only their mean is needed."""
        arrays, node_ids = arrays_of(messages.content), messages.node_ids
        layout = messages.layout or Layout(arrays, clients.parameters)

        def message(place: int, content: RecordDict) -> Message:
            return Message(content, reply_to=messages[place])

        if messages.mean_by not in (NUM_EXAMPLES, UNIFORM) or clients.channel.stages:
            return StackedReplies(layout, node_ids, self._rows(layout, len(node_ids)), message, node_name)
        block = rows_at_once(layout, len(node_ids))
        held = self._rows(layout, min(len(node_ids), block * (1 + math.ceil(self._num_ahead() / block))))
        sizes = [len(clients.data.train[node_id - FIRST_NODE_ID]) for node_id in messages.node_ids]
        weights = sizes if messages.mean_by == NUM_EXAMPLES else [1] * len(sizes)
        total = sum(weights)
        shares = [weight / total for weight in weights]
        return FoldedReplies(layout, node_ids, held, message, node_name, arrays, shares)

    def _client(self, node_id: int) -> Client:
        """Return a node's client."""
        return Client(node_id - FIRST_NODE_ID, self.states.get(node_id, _NO_STATE))

    @abstractmethod
    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        """Return the clients' replies in the messages' order, and store the states of their contexts."""

    def _context(self, message: Message) -> Context:
        """Return the context of a message's client."""
        node_id = message.metadata.dst_node_id
        return Context(
            message.metadata.run_id,
            node_id,
            {"partition-id": self._partition_of(message), "num-partitions": self._num_supernodes},
            RecordDict(dict(self.states.get(node_id, {}))),
            self._run_config,
        )

    def _check(self, messages: Sequence[Message]) -> None:
        """Raise a ``ValueError`` for messages that a SuperLink would refuse."""
        node_ids = self.get_node_ids()
        for message in messages:
            if message.metadata.dst_node_id not in node_ids:
                raise ValueError(
                    f"a message must be to a node id from {node_ids[0]} to {node_ids[-1]} (get_node_ids()), "
                    f"got {message.metadata.dst_node_id}"
                )
            if message.metadata.ttl <= 0:
                raise ValueError(f"a message must have a ttl > 0, got {message.metadata.ttl}")
        if len({id(message) for message in messages}) < len(messages):
            raise ValueError("a message occurs twice in the list; create a new one for each time it is sent")

    @staticmethod
    def _partition_of(message: Message) -> int:
        return message.metadata.dst_node_id - FIRST_NODE_ID

    def _keep_all(self, states: Mapping[int, RecordDict]) -> None:
        """Store the states of partitions."""
        self.states |= {FIRST_NODE_ID + partition_id: state for partition_id, state in states.items()}

    def _keep(self, node_id: int, state: RecordDict) -> None:
        if state:
            self.states[node_id] = state
        else:
            self.states.pop(node_id, None)


def node_name(node_id: int) -> str:
    """Return what an error message calls a client."""
    return f"partition {node_id - FIRST_NODE_ID}"


def refuse_hooks(app: ClientApp) -> None:
    """Refuse a model whose gradients have hooks, where copies of its parameters train.

    Raises
    ------
    InputError
        With the first such parameter.
    """
    if isinstance(app, Clients) and (names := hooked(app.model)):
        raise InputError(
            f"the gradient of the model's {names[0]} has a hook, and copies of the model have none; change them in "
            "LocalUpdate.correct, or try hardware=cpu"
        )


def _reset_foreign_start_method() -> None:
    """Restore Python's default start method of processes if the current one is unknown to Python.

    In joblib's jobs it is joblib's own, which starts neither a worker nor a DataLoader.
    """
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method(None, force=True)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Return a client's reply, or Flower's error if the client raises or exits."""
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"a ClientApp must return a Message, got {reply!r}")
        return reply
    except (Exception, SystemExit):
        return client_error(traceback.format_exc(), reply_to=message)


def pickle_reply(message: Message, reply: Message, state: RecordDict) -> bytes:
    """Return a pickled reply and state, or a pickled Flower error if they cannot be pickled."""
    try:
        return pickle.dumps((reply, state), protocol=5)
    except Exception:
        return pickle.dumps((client_error(traceback.format_exc(), reply_to=message), RecordDict()), protocol=5)
