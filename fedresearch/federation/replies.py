"""The replies of a round's clients as arrays, and their weighted mean: bit for bit that of Flower's FedAvg.

Flower reads the records of each reply nine times. For small models this takes longer than the training.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from numpy.typing import NDArray

from fedresearch.federation.stack import StackedReplies


class Replies:
    """A round's replies in partition order. The first axis of each array is the client.

    A client that was drawn twice occurs twice.

    Parameters
    ----------
    messages : iterable of Message
        The replies, without errors.
    weighted_by_key : str
        The metric whose value is a client's weight.

    Attributes
    ----------
    node_ids : list of int
        The clients' nodes.
    weights : ndarray, (n,)
        The clients' weights.
    params : mapping of str to ndarray
        The trained parameters, ``(n, *shape)``, for reading only.
    sent : mapping of str to mapping of str to ndarray
        The further records, what the client half's ``end`` returned as ``sent``: ``(n, *shape)`` likewise.
    metrics : mapping of str to ndarray
        The clients' metrics, ``(n,)``.
    """

    def __init__(self, messages: Iterable[Message], weighted_by_key: str) -> None:
        self._stack = stack = StackedReplies.of(messages)
        self._key = weighted_by_key
        weights = stack.metrics[weighted_by_key]
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self.node_ids = [*stack.node_ids]
        self.weights: NDArray[np.float64] = np.array(weights, np.float64)
        self.params = _Lazy(stack.layout.places, stack.array)
        self.sent: Mapping[str, Mapping[str, NDArray[Any]]] = stack.sent
        self.metrics = _Lazy(stack.metrics, lambda key: np.array(stack.metrics[key]))

    def once(self) -> "Replies":
        """Return the replies with each client once."""
        place_of = {node_id: place for place, node_id in enumerate(self.node_ids)}
        return Replies(self._stack.take([*place_of.values()]), self._key)

    def mean(self, values: Iterable[Any]) -> Any:
        """Return the weighted mean of arrays or numbers, one of each client in their order."""
        weighted = (value * share for value, share in zip(values, self._shares, strict=True))
        mean = next(weighted)
        for each in weighted:  # not sum(), which compensates rounding errors
            mean += each
        return mean

    def mean_params(self) -> Mapping[str, NDArray[Any]]:
        """Return the mean of the trained parameters."""
        places = self._stack.layout.places
        rows = {dtype: self._stack.mean(dtype, self._shares) for dtype in {place.dtype for place in places.values()}}
        return {name: rows[dtype][columns].reshape(shape) for name, (dtype, columns, shape) in places.items()}

    def aggregate_metrics(self, aggregate: Callable[[list[RecordDict], str], MetricRecord]) -> MetricRecord:
        """Return the metrics as a function of Flower's aggregates them; its default, the weighted mean, is fast."""
        if aggregate is not aggregate_metricrecords:
            return aggregate([message.content for message in self._stack], self._key)
        metrics = self._stack.metrics
        return MetricRecord({key: self.mean(metrics[key]) for key in metrics if key != self._key})


class _Lazy(Mapping[str, Any]):
    """Values by name, made when they are read."""

    def __init__(self, names: Collection[str], make: Callable[[str], Any]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> Any:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
