"""Aggregation of a model's buffers, separate from the strategy."""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedresearch.federation.averaging import aggregate_train
from fedresearch.federation.broadcast import add_records
from fedresearch.federation.records import ARRAYS, array_record
from fedresearch.federation.stack import StackedReplies
from fedresearch.local.state_names import Names


class SeparateBuffers(Strategy):
    """A strategy for the parameters, and a mean or a median for the buffers.

    The strategy never sees the running statistics: a server that treats them as parameters, in a server step or in a
    score of the clients, makes variances negative. A robust rule needs a robust aggregate of the buffers too: a client
    whose inputs are a thousand times too large has ordinary parameters, but variances that are a million times too
    large.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    names : set of str
        The buffers' names in the model's ``state_dict``.
    weighted_by_key : str or None
        The metric whose value is a client's weight in the mean; None: the coordinate-wise median.
    """

    def __init__(self, strategy: Strategy, names: Names, weighted_by_key: str | None) -> None:
        self._strategy, self._names, self._key = strategy, names, weighted_by_key

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass the parameters to the strategy, and send parameters and buffers."""
        own = ArrayRecord({name: array for name, array in arrays.items() if name not in self._names})
        return add_records(self._strategy.configure_train(server_round, own, config, grid), {ARRAYS: arrays})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the parameters by the strategy, and the buffers by their mean or median."""
        stack = StackedReplies.of(replies)
        own = stack.only(stack.layout.places.keys() - self._names)
        arrays, metrics = aggregate_train(self._strategy, server_round, own)
        if arrays is None:
            return None, metrics
        weights = self._key and [float(weight) for weight in stack.metrics[self._key]]
        aggregated = {
            name: np.average(stack.array(name), axis=0, weights=weights)
            if weights
            else np.median(stack.array(name), axis=0)
            for name in stack.layout.places
            if name in self._names
        }
        # A new record: strategies keep the one that they returned for the next round.
        return ArrayRecord({**arrays, **array_record(aggregated)}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the strategy."""
        return self._strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate to the strategy."""
        return self._strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Delegate to the strategy."""
        self._strategy.summary()
