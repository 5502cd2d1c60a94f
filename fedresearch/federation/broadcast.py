"""A round's messages as one content for many nodes; each message is made when somebody reads it."""

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict


class Broadcast(Sequence[Message]):
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
    """

    def __init__(self, content: RecordDict, node_ids: list[int], message_type: str) -> None:
        self.content, self.node_ids, self.message_type = content, node_ids, message_type
        self.mean_by: str | None = None
        self._made: dict[int, Message] = {}

    @property
    def is_read(self) -> bool:
        """Whether a message was made: from then on somebody else may have changed it."""
        return bool(self._made)

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        place = range(len(self))[place]
        if place not in self._made:
            self._made[place] = Message(self.content, self.node_ids[place], self.message_type)
        return self._made[place]


def add_records(messages: Iterable[Message], records: dict[str, ArrayRecord]) -> Iterable[Message]:
    """Put records into the contents of messages, and return the messages."""
    if isinstance(messages, Broadcast) and not messages.is_read:
        messages.content.update(records)
        return messages
    messages = list(messages)
    for message in messages:
        message.content.update(records)
    return messages
