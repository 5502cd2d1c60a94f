"""FedDyn (Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", arXiv:2111.04263), Algorithm 1.

Client i keeps g_i, zero at first, and trains from the server's model x::

    y_i  ~ argmin_y F_i(y) - <g_i, y> + alpha/2 |y - x|^2
    g_i+ = g_i - alpha (y_i - x)

The server keeps h, the mean of all g_i, and sends ``x+ = mean_S y_i - h+ / alpha``. Where clients are weighed by their
examples, they weigh so in h too; the paper weighs them equally.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedresearch.federation.records import NUM_CLIENTS, array_record, arrays_of, number, values
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors
from fedresearch.strategies.client_mean import ClientMean

_LINEAR = "linear-term"
_ALPHA = "alpha"


class FedDyn(FedAvg):
    """The server.

    Parameters
    ----------
    alpha : float
        Weight of the regulariser, above 0.
    **options
        Of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(self, *, alpha: float, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.h = ClientMean(self.weighted_by_key)
        self._arrays = ArrayRecord()
        self._num_clients = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep x, and send alpha along."""
        self._arrays, self._num_clients = arrays, int(number(config, NUM_CLIENTS))
        config[_ALPHA] = self.alpha
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models, and move the mean by h."""
        replies = list(replies)
        x = values(self._arrays)
        models = [values(arrays_of(reply.content)) for reply in replies]
        changes = [{name: -self.alpha * (y[name] - x[name]) for name in x} for y in models]
        self.h.add(zip(replies, changes, strict=True))
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        h = self.h.mean(self._arrays, self._num_clients)
        return array_record({name: y - h[name] / self.alpha for name, y in values(mean).items()}), metrics


class DynamicUpdate(LocalUpdate):
    """The client."""

    def begin(self, start: Start) -> Fixed:
        """Return x, g_i and alpha."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in start.anchor.items()}
        return {"x": start.anchor, "g": start.kept.get(_LINEAR, zeros), "alpha": start.config[_ALPHA]}

    def correct(self, gradients: Tensors, params: Tensors, fixed: Fixed) -> Tensors:
        """Subtract g_i and add ``alpha (y - x)``."""
        x, g, alpha = fixed["x"], fixed["g"], fixed["alpha"]
        return {name: gradient - g[name] + alpha * (params[name] - x[name]) for name, gradient in gradients.items()}

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Keep g_i; the server knows its change from the model."""
        x, g, alpha = fixed["x"], fixed["g"], fixed["alpha"]
        return End(kept={_LINEAR: {name: g[name] - alpha * (params[name] - x[name]) for name in params}})
