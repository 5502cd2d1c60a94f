"""What the servers share whose result is a function of the clients' models alone, whatever the clients weigh."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedresearch.federation.records import Values, array_record, arrays_of, view

Models = Sequence[Mapping[str, Values]]
# Some coordinates of all models, (n, b), in double precision.
Block = NDArray[np.float64]

_BLOCK = 1 << 16  # coordinates in a block: the models as doubles would take n times 8 bytes a parameter


class RobustRule(FedAvg):
    """A rule in the place of FedAvg's mean. Each client has one model, however often it was drawn.

    Metrics are aggregated as FedAvg does, over all clients.
    """

    @property
    @abstractmethod
    def min_models(self) -> int:
        """The number of models below which there is no result."""

    @abstractmethod
    def combine(self, models: Models) -> dict[str, Values]:
        """Return the new global model from the clients', which are in partition order."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the models; None of fewer than the rule needs."""
        replies = list(replies)
        of_client = {reply.metadata.src_node_id: arrays_of(reply.content) for reply in replies}
        models = [{name: view(array) for name, array in arrays.items()} for arrays in of_client.values()]
        if len(models) < self.min_models:
            return None, None
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return array_record(self.combine(models)), metrics


def by_coordinate(rule: Callable[[Block], NDArray[np.float64]], models: Models) -> dict[str, Values]:
    """Return what a rule makes of each coordinate: ``(n, b)`` values of n models to ``(b,)``."""
    return {
        name: np.concatenate([rule(block) for block in blocks(models, name)]).reshape(array.shape)
        for name, array in models[0].items()
    }


def blocks(models: Models, name: str) -> Iterator[Block]:
    """Yield the coordinates of one array of all models, some at a time."""
    flat = [model[name].ravel() for model in models]
    for start in range(0, flat[0].size, _BLOCK):
        yield np.array([values[start : start + _BLOCK] for values in flat], np.float64)
