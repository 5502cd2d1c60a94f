"""Buffers of a model, aggregated beside the strategy."""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedresearch.federation.records import ARRAYS, array_record, arrays_of, metrics_of, number, values
from fedresearch.local.state_names import Names


class SeparateBuffers(Strategy):
    """A strategy for the parameters, and a mean or a median for the buffers.

    Running statistics are no parameters: a server that steps along them, or scores clients by them, makes variances
    negative. The strategy never sees them. Beside a robust rule they need one of their own: where a client's inputs are
    a thousand times too large, its parameters look like the others', and its variances are a million times theirs.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    names : set of str
        The buffers' names in the model's ``state_dict``.
    weighted_by_key : str or None
        The metric whose value weighs a client in the mean; None: the coordinate-wise median.
    """

    def __init__(self, strategy: Strategy, names: Names, weighted_by_key: str | None) -> None:
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
        """Let the strategy aggregate the parameters, and aggregate the rest."""
        replies = list(replies)
        buffers = []
        for reply in replies:
            reply.content[ARRAYS], rest = self._split(arrays_of(reply.content))
            buffers.append(values(rest))
        weights = self._key and [float(number(metrics_of(reply.content), self._key)) for reply in replies]
        arrays, metrics = self._strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        aggregated = {}
        for name in buffers[0]:
            of_clients = [rest[name] for rest in buffers]
            aggregated[name] = (
                np.average(of_clients, axis=0, weights=weights) if weights else np.median(of_clients, axis=0)
            )
        # A record of its own: strategies keep theirs for the next round.
        return ArrayRecord({**arrays, **array_record(aggregated)}), metrics

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
