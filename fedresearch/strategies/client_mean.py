"""What the servers share that keep account of the clients."""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, Message

from fedresearch.federation.records import Values, metrics_of, number, values


class ClientMean:
    """The mean over all clients of arrays that each of them has; clients send only the changes.

    A client that never took part counts with zeros, and weighs as much as those that did weigh on average.

    Parameters
    ----------
    weighted_by_key : str
        The metric whose value weighs a client.
    """

    def __init__(self, weighted_by_key: str) -> None:
        self._key = weighted_by_key
        self._weights: dict[int, float] = {}
        self._sum: dict[str, Values] = {}

    def add(self, changes: Iterable[tuple[Message, Mapping[str, Values]]]) -> None:
        """Take the changes of a round in, each client's once, however often its reply counts in the average."""
        seen = set()
        for reply, change in changes:
            node_id = reply.metadata.src_node_id
            if node_id in seen:
                continue
            seen.add(node_id)
            self._weights[node_id] = weight = float(number(metrics_of(reply.content), self._key))
            for name, value in change.items():
                self._sum[name] = self._sum.get(name, np.zeros_like(value)) + weight * value

    def mean(self, like: ArrayRecord, num_clients: int) -> dict[str, Values]:
        """Return the mean, with the names, shapes and dtypes of a record's arrays; zeros before any change."""
        total = sum(self._weights.values()) * num_clients / max(len(self._weights), 1)
        return {
            name: (self._sum[name] / total).astype(x.dtype) if name in self._sum else np.zeros_like(x)
            for name, x in values(like).items()
        }


def take(replies: Iterable[Message], key: str) -> list[ArrayRecord]:
    """Take a further record out of each reply: Flower's strategies admit one ArrayRecord."""
    return [reply.content.pop(key) for reply in replies]  # type: ignore[misc]
