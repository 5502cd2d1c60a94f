"""Buffers of a model, averaged beside the strategy."""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedresearch.apps.records import ARRAYS, arrays_of, metrics_of, number, record, values
from fedresearch.local.parts import Names


class BufferAveraging(Strategy):
    """A strategy for the parameters, and the weighted mean for the buffers.

    Running statistics are no parameters: a server that steps along them, or scores clients by them, makes variances
    negative. The strategy never sees them.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    names : set of str
        The buffers' names in the model's ``state_dict``.
    weighted_by_key : str
        The metric whose value weighs a client.
    """

    def __init__(self, strategy: Strategy, names: Names, weighted_by_key: str) -> None:
        self._strategy, self._names, self._key = strategy, names, weighted_by_key

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy the parameters, and send all."""
        messages = list(self._strategy.configure_train(server_round, self._split(arrays)[0], config, grid))
        for message in messages:
            message.content[ARRAYS] = arrays
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the parameters, and average the rest."""
        replies = list(replies)
        weights, buffers = [], []
        for reply in replies:
            weights.append(float(number(metrics_of(reply.content), self._key)))
            reply.content[ARRAYS], rest = self._split(arrays_of(reply.content))
            buffers.append(values(rest))
        arrays, metrics = self._strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        mean = {name: np.average([rest[name] for rest in buffers], axis=0, weights=weights) for name in buffers[0]}
        # A record of its own: strategies keep theirs for the next round.
        return ArrayRecord({**arrays, **record(mean)}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Do as the strategy."""
        return self._strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Do as the strategy."""
        return self._strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Do as the strategy."""
        self._strategy.summary()

    def _split(self, arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
        """Return the parameters and the buffers."""
        return (
            ArrayRecord({name: array for name, array in arrays.items() if name not in self._names}),
            ArrayRecord({name: array for name, array in arrays.items() if name in self._names}),
        )
