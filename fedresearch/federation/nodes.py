"""SuperNodes, seen as a Grid in partition order."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedresearch.errors import InputError
from fedresearch.federation.delegating_grid import DelegatingGrid
from fedresearch.federation.flower import FIRST_NODE_ID

# Flower's own Grid asks for replies each 3 s.
_POLL_S = 0.2
# The record in which a node tells its ``--node-config``, and the one that says that a message is about its state.
_NODE, _STATE = "node", "state"
# The record of a node's state that holds its rows, which the server knows.
ROWS = "rows"


def answer_query(message: Message, context: Context) -> Message:
    """Answer a ``query`` message, of which there are three kinds.

    One asks for the node's config, which alone says whose partition is whose; one asks for what the client keeps; and
    one brings what it is to keep.
    """
    if _STATE not in message.content:
        return Message(RecordDict({_NODE: ConfigRecord(dict(context.node_config))}), reply_to=message)
    brought = {name: record for name, record in message.content.items() if name != _STATE}
    context.state.update(brought)
    kept = {} if brought else {name: record for name, record in context.state.items() if name != ROWS}
    return Message(RecordDict(kept), reply_to=message)


class NodeGrid(DelegatingGrid):
    """A Grid whose SuperNodes have connected by themselves, under random ids and in any order.

    Here they have the ids that they have on all other hardware, which follow from their partitions.

    Parameters
    ----------
    grid : Grid
        Flower's.

    Attributes
    ----------
    num_supernodes : int or None
        How many take part, those of the first partitions; None: as many as they say that there are.
    timeout_s : float
        Seconds to wait for all of them to connect.
    """

    def __init__(self, grid: Grid) -> None:
        self.num_supernodes: int | None = None
        self.timeout_s = 60.0
        super().__init__(grid)
        self._may_keep: set[int] = set()
        self._node_ids: dict[int, int] = {}  # by partition
        self._asked: set[int] = set()
        self._unanswered: dict[str, Message] = {}

    def __enter__(self) -> Self:
        """Do nothing: whoever started the SuperNodes stops them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def get_node_ids(self) -> Sequence[int]:
        """Return the node ids in partition order, when all SuperNodes are there.

        Raises
        ------
        InputError
            If they are not there in time, or two of them have one partition.
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
        """Ask the nodes that are new for their partitions, and take the answers that are there, without waiting."""
        new = [node_id for node_id in self._grid.get_node_ids() if node_id not in self._asked]
        if new:
            asked = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in new]
            self._unanswered |= self._push(asked, new)
            self._asked.update(new)
        for reply in self._pull(self._unanswered):
            if reply.has_error():  # a node that has left: the SuperLink knows it for a while
                continue
            node_id, told = reply.metadata.src_node_id, reply.content.config_records[_NODE]
            partition_id, num_partitions = told.get("partition-id"), told.get("num-partitions")
            if not isinstance(partition_id, int) or not isinstance(num_partitions, int):
                raise InputError(
                    f"a SuperNode has the node config {dict(told)}; "
                    "start each with --node-config 'partition-id=I num-partitions=N', I from 0"
                )
            if self._node_ids.setdefault(partition_id, node_id) != node_id:
                raise InputError(
                    f"two SuperNodes have partition-id={partition_id}; start each with one of its own, from 0"
                )
            self.num_supernodes = self.num_supernodes or num_partitions

    def _missing(self) -> str:
        wanted = self.num_supernodes
        if wanted is None:
            return f"no SuperNode has answered within {self.timeout_s:g} s; start them, or set hardware.timeout_s"
        missing = [i for i in range(wanted) if i not in self._node_ids]
        return (
            f"{wanted - len(missing)} of {wanted} SuperNodes are there after {self.timeout_s:g} s, without those of "
            f"partitions {', '.join(map(str, missing[:20]))}{' ...' * (len(missing) > 20)}; start the rest, or set "
            f"federation.num_supernodes={wanted - len(missing) or 1} or a longer hardware.timeout_s"
        )

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies, those that come within the time."""
        started = time.monotonic()
        messages = list(messages)
        node_ids = [message.metadata.dst_node_id for message in messages]
        self._may_keep.update(node_ids)
        unanswered = self._push(messages, [self._node_ids[node_id - FIRST_NODE_ID] for node_id in node_ids])
        replies = [*self._pull(unanswered)]
        while unanswered and (timeout is None or time.monotonic() - started < timeout):
            time.sleep(_POLL_S)
            replies += self._pull(unanswered)
        return replies

    def try_out(self, app: ClientApp, message: Message, context: Context) -> None:
        """Let an app answer a message as its clients would, and keep nothing of it."""
        app(message, context)

    @property
    def states(self) -> dict[int, RecordDict]:
        """What clients keep from one message to the next, by node id; they are asked, and can be told."""
        asked = {node_id: RecordDict({_STATE: ConfigRecord()}) for node_id in sorted(self._may_keep)}
        return {reply.metadata.src_node_id: reply.content for reply in self._query(asked) if reply.content}

    @states.setter
    def states(self, states: dict[int, RecordDict]) -> None:
        self.get_node_ids()
        self._query({i: RecordDict({**state, _STATE: ConfigRecord()}) for i, state in states.items()})

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
                raise RuntimeError(f"a SuperNode did not tell or take its state: {reply.error.reason}")
        return replies

    def _push(self, messages: Sequence[Message], node_ids: Sequence[int]) -> dict[str, Message]:
        """Send messages to nodes by their own ids, and return them by the messages' ids."""
        shown = [message.metadata.dst_node_id for message in messages]
        for message, node_id in zip(messages, node_ids, strict=True):
            message.metadata.dst_node_id = node_id
        message_ids = list(self._grid.push_messages(messages))
        for message, node_id in zip(messages, shown, strict=True):
            message.metadata.dst_node_id = node_id
        if len(message_ids) < len(messages) or not all(message_ids):
            raise RuntimeError("the SuperLink did not take all messages: they are too large, or the run was stopped")
        return dict(zip(message_ids, messages, strict=True))

    def _pull(self, unanswered: dict[str, Message]) -> Iterator[Message]:
        """Yield the replies that are there, and take what they answer out of the unanswered."""
        for reply in self._grid.pull_messages(list(unanswered)) if unanswered else ():
            message = unanswered.pop(reply.metadata.reply_to_message_id)
            # In the name of the node that the message is shown to be to. An error of the SuperLink's own, such as of a
            # node that has left, comes in no node's name at all.
            yield Message(reply.error if reply.has_error() else reply.content, reply_to=message)
