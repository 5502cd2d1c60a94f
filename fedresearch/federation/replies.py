"""The replies of a round's clients as arrays, and their weighted mean: bit for bit that of Flower's FedAvg.

Flower reads the records of each reply nine times. For small models this takes longer than the training.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from numpy.typing import NDArray

from fedresearch.federation.records import ARRAYS, METRICS, arrays_of, metrics_of, number, view


class Replies:
    """A round's replies in partition order. The first axis of each array is the client.

    A client that was drawn twice occurs twice.

    Parameters
    ----------
    messages : sequence of Message
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
        The trained parameters, ``(n, *shape)``. Each reading stacks them anew, so that no second copy of all is kept.
    sent : mapping of str to mapping of str to ndarray
        The further records, what the client half's ``end`` returned as ``sent``: ``(n, *shape)`` likewise.
    metrics : mapping of str to ndarray
        The clients' metrics, ``(n,)``.
    """

    def __init__(self, messages: Sequence[Message], weighted_by_key: str) -> None:
        self._messages, self._key = messages, weighted_by_key
        self._arrays = [arrays_of(message.content) for message in messages]
        self._metrics = [metrics_of(message.content) for message in messages]
        weights = [number(metrics, weighted_by_key) for metrics in self._metrics]
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self.node_ids = [message.metadata.src_node_id for message in messages]
        self.weights: NDArray[np.float64] = np.array(weights, np.float64)
        self.params = _stacked(self._arrays)
        self.metrics = _Lazy(self._metrics[0], lambda key: np.array([metrics[key] for metrics in self._metrics]))
        further = messages[0].content.keys() - {ARRAYS, METRICS}
        self.sent = _Lazy(further, lambda key: _stacked([message.content[key] for message in messages]))  # type: ignore[misc]

    def once(self) -> "Replies":
        """Return the replies with each client once."""
        of_client = {message.metadata.src_node_id: message for message in self._messages}
        return Replies([*of_client.values()], self._key)

    def mean(self, values: Iterable[Any]) -> Any:
        """Return the weighted mean of arrays or numbers, one of each client in their order."""
        weighted = (value * share for value, share in zip(values, self._shares, strict=True))
        mean = next(weighted)
        for each in weighted:  # not sum(), which compensates rounding errors
            mean += each
        return mean

    def mean_params(self) -> Mapping[str, NDArray[Any]]:
        """Return the mean of the trained parameters, each computed when it is first read."""
        make = functools.cache(lambda name: self.mean(view(arrays[name]) for arrays in self._arrays))
        return _Lazy(self._arrays[0], make)

    def aggregate_metrics(self, aggregate: Callable[[list[RecordDict], str], MetricRecord]) -> MetricRecord:
        """Return the metrics as a function of Flower's aggregates them; its default, the weighted mean, is fast."""
        if aggregate is not aggregate_metricrecords:
            return aggregate([message.content for message in self._messages], self._key)
        keys = [key for key in self._metrics[0] if key != self._key]
        return MetricRecord({key: self.mean(number(metrics, key) for metrics in self._metrics) for key in keys})


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


def _stacked(records: Sequence[ArrayRecord]) -> _Lazy:
    return _Lazy(records[0], lambda name: np.stack([view(record[name]) for record in records]))
