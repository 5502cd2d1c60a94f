"""What the servers share whose result is a function of the clients' models alone, whatever the clients weigh."""

from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedresearch.federation.records import Values
from fedresearch.federation.replies import Replies
from fedresearch.federation.rounds import Stalled
from fedresearch.strategies.server import Params, ServerUpdate

# Some coordinates of all models, (n, b), in double precision.
Block = NDArray[np.float64]

_BLOCK = 1 << 16  # coordinates in a block: the models as doubles would take n times 8 bytes a parameter


class RobustRule(ServerUpdate):
    """A rule in the place of FedAvg's mean. Each client has one model, however often it was drawn.

    Metrics are aggregated as FedAvg does, over all clients.
    """

    @property
    @abstractmethod
    def min_models(self) -> int:
        """The number of models below which there is no result."""

    @abstractmethod
    def combine(self, models: Params) -> Params:
        """Return the new global model from the clients', ``(n, *shape)`` in partition order."""

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Combine the models.

        Raises
        ------
        Stalled
            If there are fewer than the rule needs.
        """
        once = replies.once()
        if len(once.node_ids) < self.min_models:
            raise Stalled(f"{type(self).__name__} needs {self.min_models} clients, got {len(once.node_ids)}")
        return self.combine(once.params)


def by_coordinate(rule: Callable[[Block], NDArray[np.float64]], models: Params) -> dict[str, Values]:
    """Return what a rule makes of each coordinate: ``(n, b)`` values of n models to ``(b,)``."""
    return {
        name: np.concatenate([rule(block) for block in blocks(of_models)]).reshape(of_models.shape[1:])
        for name, of_models in models.items()
    }


def blocks(of_models: Values) -> Iterator[Block]:
    """Yield the coordinates of one array of all models, some at a time."""
    flat = of_models.reshape(len(of_models), -1)
    for start in range(0, flat.shape[1], _BLOCK):
        yield flat[:, start : start + _BLOCK].astype(np.float64)
