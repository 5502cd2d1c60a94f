"""What the servers share that keep account of the clients."""

from collections.abc import Mapping
from math import sqrt

import numpy as np

from fedresearch.federation.records import Values
from fedresearch.federation.replies import Replies
from fedresearch.strategies.server import Params


class ClientMean:
    """The mean over all clients of arrays that each of them has; clients send only the changes.

    A client that never took part counts with zeros, and weighs as much as those that did weigh on average.
    """

    def __init__(self) -> None:
        self._weights: dict[int, float] = {}
        self._sum: dict[str, Values] = {}

    def add(self, replies: Replies, changes: Mapping[str, Values]) -> None:
        """Add the changes of the clients of a round, ``(n, *shape)``, each of whom occurs once."""
        weights = replies.weights.tolist()
        self._weights |= zip(replies.node_ids, weights, strict=True)
        for name, of_clients in changes.items():
            for weight, change in zip(weights, of_clients, strict=True):
                self._sum[name] = self._sum.get(name, np.zeros_like(change)) + weight * change

    def mean(self, like: Params, num_clients: int) -> dict[str, Values]:
        """Return the mean, with the names, shapes and dtypes of other arrays; zeros before any change."""
        total = self._total(num_clients)
        return {
            name: (self._sum[name] / total).astype(x.dtype) if name in self._sum else np.zeros_like(x)
            for name, x in like.items()
        }

    def norm(self, num_clients: int) -> float:
        """Return the Euclidean norm of the mean."""
        squares = sum(float(np.sum(np.square(each, dtype=np.float64))) for each in self._sum.values())
        return sqrt(squares) / self._total(num_clients) if squares else 0.0

    def _total(self, num_clients: int) -> float:
        return sum(self._weights.values()) * num_clients / max(len(self._weights), 1)
