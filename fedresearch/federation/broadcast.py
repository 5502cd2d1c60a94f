"""A round's messages as one content for many nodes; each message is made when somebody reads it."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from fedresearch.federation.layout import Layout


class LazyMessages(Sequence[Message]):
    """A message for each of some nodes, made when it is first read.

    Parameters
    ----------
    node_ids : sequence of int
        The nodes.
    """

    def __init__(self, node_ids: Sequence[int]) -> None:
        self.node_ids = node_ids
        self._made: dict[int, Message] = {}

    @abstractmethod
    def _make(self, place: int) -> Message:
        """Return a new message."""

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        place = range(len(self))[place]
        if place not in self._made:
            self._made[place] = self._make(place)
        return self._made[place]


class Broadcast(LazyMessages):
    """The messages of FedAvg and of the strategies that extend it.

    Parameters
    ----------
    content : RecordDict
        What all nodes receive.
    node_ids : list of int
        The nodes.
    message_type : str
        Flower's ``MessageType``.

    Attributes
    ----------
    mean_by : str or None
        The metric that is the clients' weight, if nothing but the mean of their replies is read.
    layout : Layout or None
        The places of the model's arrays in the replies, if they are known.
    """

    def __init__(self, content: RecordDict, node_ids: list[int], message_type: str) -> None:
        super().__init__(node_ids)
        self.content, self.message_type = content, message_type
        self.mean_by: str | None = None
        self.layout: Layout | None = None

    @property
    def is_read(self) -> bool:
        """Whether a message was made: from then on somebody else may have changed it."""
        return bool(self._made)

    def _make(self, place: int) -> Message:
        return Message(self.content, self.node_ids[place], self.message_type)


def add_records(messages: Iterable[Message], records: dict[str, ArrayRecord]) -> Iterable[Message]:
    """Put records into the contents of messages, and return the messages."""
    if isinstance(messages, Broadcast) and not messages.is_read:
        messages.content.update(records)
        return messages
    messages = list(messages)
    for message in messages:
        message.content.update(records)
    return messages
