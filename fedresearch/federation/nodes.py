"""SuperNodes as a Grid in partition order, and how a SuperNode answers its queries."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedresearch.errors import InputError
from fedresearch.federation.delegating_grid import DelegatingGrid
from fedresearch.federation.flower import FIRST_NODE_ID

# Flower's own Grid polls for replies every 3 s.
_POLL_S = 0.2
# The record of a query that declares its kind, and the kinds.
_QUERY, _KIND = "query", "kind"
_NODE_CONFIG, _READ_STATE, _WRITE_STATE = "node-config", "read-state", "write-state"
# The record of a node's state that holds its rows, which the server knows.
ROWS = "rows"


def answer_query(message: Message, context: Context) -> Message:
    """Answer a ``query`` message, whose record ``query`` declares its kind.

    ``node-config`` returns the node's config, which alone contains its partition id; ``read-state`` returns the
    client's state; ``write-state`` replaces records of the state by those of the message.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """
    kind, records = message.content.config_records[_QUERY][_KIND], RecordDict()
    if kind == _NODE_CONFIG:
        records[_NODE_CONFIG] = ConfigRecord(dict(context.node_config))
    elif kind == _READ_STATE:
        records.update({name: record for name, record in context.state.items() if name != ROWS})
    elif kind == _WRITE_STATE:
        context.state.update({name: record for name, record in message.content.items() if name != _QUERY})
    else:
        raise ValueError(f"a query must be of kind {_NODE_CONFIG}, {_READ_STATE} or {_WRITE_STATE}, got {kind!r}")
    return Message(records, reply_to=message)


def _query_content(kind: str, records: Mapping[str, Any] | None = None) -> RecordDict:
    return RecordDict({**(records or {}), _QUERY: ConfigRecord({_KIND: kind})})


class NodeGrid(DelegatingGrid):
    """A Grid that gives SuperNodes, which connect with random ids in any order, node ids in partition order.

    These are the node ids that clients have on all other hardware.

    Parameters
    ----------
    grid : Grid
        Flower's Grid of the connected SuperNodes.

    Attributes
    ----------
    num_supernodes : int or None
        The number of SuperNodes that take part, those of the first partitions; None: the ``num-partitions`` of the
        first node that answers.
    timeout_s : float
        Seconds to wait for all of them to connect.
    """

    def __init__(self, grid: Grid) -> None:
        self.num_supernodes: int | None = None
        self.timeout_s = 60.0
        super().__init__(grid)
        self._messaged: set[int] = set()
        self._node_ids: dict[int, int] = {}  # by partition
        self._queried: set[int] = set()
        self._unanswered: dict[str, Message] = {}

    def __enter__(self) -> Self:
        """Do nothing: the SuperNodes are started and stopped elsewhere."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def get_node_ids(self) -> Sequence[int]:
        """Return the node ids in partition order, once all SuperNodes have connected.

        Raises
        ------
        InputError
            If they do not connect in time, or if two of them have the same partition.
        """
        started = time.monotonic()
        while True:
            wanted = self.num_supernodes
            if wanted is not None and all(i in self._node_ids for i in range(wanted)):
                return range(FIRST_NODE_ID, FIRST_NODE_ID + wanted)
            self.query_new_nodes()
            if time.monotonic() - started > self.timeout_s:
                raise InputError(self._missing())
            time.sleep(_POLL_S)

    def query_new_nodes(self) -> None:
        """Query new nodes for their partitions, and read the answers that have arrived, without waiting."""
        new = [node_id for node_id in self._grid.get_node_ids() if node_id not in self._queried]
        if new:
            queries = [Message(_query_content(_NODE_CONFIG), node_id, MessageType.QUERY) for node_id in new]
            self._unanswered |= self._push(queries, new)
            self._queried.update(new)
        for reply in self._pull(self._unanswered):
            if reply.has_error():  # the node has disconnected, but the SuperLink still lists it for a while
                continue
            node_id, node_config = reply.metadata.src_node_id, reply.content.config_records[_NODE_CONFIG]
            partition_id, num_partitions = node_config.get("partition-id"), node_config.get("num-partitions")
            if not isinstance(partition_id, int) or not isinstance(num_partitions, int):
                raise InputError(
                    f"a SuperNode has the node config {dict(node_config)}; "
                    "start each with --node-config 'partition-id=I num-partitions=N', I from 0"
                )
            if self._node_ids.setdefault(partition_id, node_id) != node_id:
                raise InputError(
                    f"two SuperNodes have partition-id={partition_id}; start each with a different one, from 0"
                )
            self.num_supernodes = self.num_supernodes or num_partitions

    def _missing(self) -> str:
        wanted = self.num_supernodes
        if wanted is None:
            return f"no SuperNode answered within {self.timeout_s:g} s; start them, or set hardware.timeout_s"
        missing = [i for i in range(wanted) if i not in self._node_ids]
        return (
            f"{wanted - len(missing)} of {wanted} SuperNodes have connected after {self.timeout_s:g} s, without those "
            f"of partitions {', '.join(map(str, missing[:20]))}{' ...' * (len(missing) > 20)}; start these, or set "
            f"federation.num_supernodes={wanted - len(missing) or 1} or a longer hardware.timeout_s"
        )

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that arrive within the timeout."""
        started = time.monotonic()
        messages = list(messages)
        node_ids = [message.metadata.dst_node_id for message in messages]
        self._messaged.update(node_ids)
        unanswered = self._push(messages, [self._node_ids[node_id - FIRST_NODE_ID] for node_id in node_ids])
        replies = [*self._pull(unanswered)]
        while unanswered and (timeout is None or time.monotonic() - started < timeout):
            time.sleep(_POLL_S)
            replies += self._pull(unanswered)
        return replies

    def try_out(self, app: ClientApp, message: Message, context: Context) -> None:
        """Call an app with a message as its clients would, and discard the reply."""
        app(message, context)

    @property
    def states(self) -> dict[int, RecordDict]:
        """The clients' nonempty states by node id; reading and setting them queries the nodes."""
        contents = {node_id: _query_content(_READ_STATE) for node_id in sorted(self._messaged)}
        return {reply.metadata.src_node_id: reply.content for reply in self._query(contents) if reply.content}

    @states.setter
    def states(self, states: dict[int, RecordDict]) -> None:
        self.get_node_ids()
        self._query({node_id: _query_content(_WRITE_STATE, state) for node_id, state in states.items()})

    def _query(self, contents: Mapping[int, RecordDict]) -> list[Message]:
        """Send each node its content, and return the replies.

        Raises
        ------
        RuntimeError
            If a node fails.
        """
        messages = [Message(content, node_id, MessageType.QUERY) for node_id, content in contents.items()]
        replies = list(self.send_and_receive(messages))
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a SuperNode failed to read or write its state: {reply.error.reason}")
        return replies

    def _push(self, messages: Sequence[Message], node_ids: Sequence[int]) -> dict[str, Message]:
        """Send messages to nodes by the SuperLink's ids, and return the messages by message id."""
        own_ids = [message.metadata.dst_node_id for message in messages]
        for message, node_id in zip(messages, node_ids, strict=True):
            message.metadata.dst_node_id = node_id
        message_ids = list(self._grid.push_messages(messages))
        for message, node_id in zip(messages, own_ids, strict=True):
            message.metadata.dst_node_id = node_id
        if len(message_ids) < len(messages) or not all(message_ids):
            raise RuntimeError("the SuperLink did not accept all messages: they are too large, or the run was stopped")
        return dict(zip(message_ids, messages, strict=True))

    def _pull(self, unanswered: dict[str, Message]) -> Iterator[Message]:
        """Yield the replies that have arrived, and remove their messages from the unanswered ones."""
        for reply in self._grid.pull_messages(list(unanswered)) if unanswered else ():
            message = unanswered.pop(reply.metadata.reply_to_message_id)
            # From the node that the message names. An error of the SuperLink itself, such as for a node that has
            # disconnected, names no node.
            yield Message(reply.error if reply.has_error() else reply.content, reply_to=message)
