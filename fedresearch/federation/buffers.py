"""Aggregation of a model's buffers, separate from the strategy."""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedresearch.federation.averaging import aggregate_train
from fedresearch.federation.records import ARRAYS, array_record, arrays_of, metrics_of, number, values
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
        messages = list(self._strategy.configure_train(server_round, self._split(arrays)[0], config, grid))
        for message in messages:
            message.content[ARRAYS] = arrays
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the parameters by the strategy, and the buffers by their mean or median."""
        replies = list(replies)
        buffers = []
        for reply in replies:
            reply.content[ARRAYS], rest = self._split(arrays_of(reply.content))
            buffers.append(values(rest))
        weights = self._key and [float(number(metrics_of(reply.content), self._key)) for reply in replies]
        arrays, metrics = aggregate_train(self._strategy, server_round, replies)
        if arrays is None:
            return None, metrics
        aggregated = {}
        for name in buffers[0]:
            client_values = [rest[name] for rest in buffers]
            aggregated[name] = (
                np.average(client_values, axis=0, weights=weights) if weights else np.median(client_values, axis=0)
            )
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

    def _split(self, arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
        """Return the parameters and the buffers."""
        return (
            ArrayRecord({name: array for name, array in arrays.items() if name not in self._names}),
            ArrayRecord({name: array for name, array in arrays.items() if name in self._names}),
        )
