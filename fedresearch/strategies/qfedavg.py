"""q-FedAvg (Li et al. 2020, "Fair Resource Allocation in Federated Learning", arXiv:1905.10497, Algorithm 2).

With F_k the mean loss over client k's training data, the clients that train in a round send their models w_k, and F_k
at the model w that they received. The server computes ::

    Delta w_k = L (w - w_k)
    Delta_k   = F_k(w)^q Delta w_k
    h_k       = q F_k(w)^(q-1) |Delta w_k|^2 + L F_k(w)^q
    w+        = w - sum_k Delta_k / sum_k h_k

With q = 0 this is the plain mean of the models. Each client counts as often as it was drawn: the paper draws clients in
proportion to their examples. Flower's QFedAvg takes the mean loss of the local steps for F_k(w).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedresearch.federation.records import Values, array_record, arrays_of, values
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors
from fedresearch.strategies.client_mean import take
from fedresearch.strategies.robust import Models

_LOSS = "received-loss"
_LEAST_LOSS = 1e-10  # so that a power of 0 is finite; the authors' code adds as much


class QFedAvg(FedAvg):
    """The server.

    Parameters
    ----------
    q : float
        How much more a client with a larger loss weighs; 0: not at all.
    client_learning_rate : float
        1 / L.
    **options
        Of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(self, *, q: float, client_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.q, self.client_learning_rate = q, client_learning_rate
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep w."""
        self._arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step along the clients' updates, weighed by powers of their losses."""
        replies = list(replies)
        losses = [loss["F"].numpy().item() for loss in take(replies, _LOSS)]
        models = [values(arrays_of(reply.content)) for reply in replies]
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return array_record(step(values(self._arrays), models, losses, self.q, 1 / self.client_learning_rate)), metrics


def step(
    w: Mapping[str, Values], models: Models, losses: Sequence[float], q: float, lipschitz: float
) -> dict[str, Values]:
    """Return w+ from w, the clients' models and their losses at w; in double precision."""
    at_w = np.maximum(losses, _LEAST_LOSS)
    # F_k^q without a factor that cancels, so that none overflows and they do not all vanish.
    powers = (at_w / at_w.max()) ** q
    delta, h = {name: np.zeros(value.shape) for name, value in w.items()}, 0.0
    for model, loss, power in zip(models, at_w, powers, strict=True):
        update = {name: lipschitz * (value.astype(np.float64) - model[name]) for name, value in w.items()}
        h += power * (q / loss * sum(np.sum(value**2) for value in update.values()) + lipschitz)
        for name, value in update.items():
            delta[name] += power * value
    return {name: value - delta[name] / h for name, value in w.items()}


class ReportingUpdate(LocalUpdate):
    """The client: FedAvg's, and its loss at the received model, which costs a pass over its training data."""

    def begin(self, start: Start) -> Fixed:
        """Keep ``F_k(w)``."""
        return {"F": start.loss(start.anchor)}

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Send ``F_k(w)``."""
        return End(sent={_LOSS: {"F": fixed["F"]}})
