"""FedDyn (Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", arXiv:2111.04263), Algorithm 1.

Client i keeps g_i, zero at first, and trains from the server's model x::

    y_i  ~ argmin_y F_i(y) - <g_i, y> + alpha/2 |y - x|^2
    g_i+ = g_i - alpha (y_i - x)

The server keeps h, the mean of all g_i, and sends ``x+ = mean_S y_i - h+ / alpha``. Where clients are weighed by their
examples, they weigh so in h too; the paper weighs them equally.
"""

from collections.abc import Callable
from typing import Any

import torch

from fedresearch.federation.replies import Replies
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors, Term
from fedresearch.strategies.client_mean import ClientMean
from fedresearch.strategies.server import Params, Sent, ServerUpdate

_LINEAR = "linear-term"
_ALPHA = "alpha"


class FedDyn(ServerUpdate):
    """The server.

    Parameters
    ----------
    alpha : float
        Weight of the regulariser, above 0.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, alpha: float, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.h = ClientMean()

    def send(self, x: Params) -> Sent:
        """Send alpha along."""
        return {_ALPHA: self.alpha}

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Move the mean model by h."""
        once = replies.once()
        self.h.add(once, {name: -self.alpha * (once.params[name] - x[name]) for name in x})
        h = self.h.mean(x, self.num_clients)
        return {name: y - h[name] / self.alpha for name, y in mean.items()}


class DynamicUpdate(LocalUpdate):
    """The client."""

    def begin(self, start: Start) -> Fixed:
        """Return x, g_i and alpha."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in start.anchor.items()}
        return {"x": start.anchor, "g": start.kept.get(_LINEAR, zeros), "alpha": start.config[_ALPHA]}

    def term(self, fixed: Fixed) -> Term:
        """Subtract g_i and add ``alpha (y - x)``."""
        return Term({name: -g for name, g in fixed["g"].items()}, fixed["alpha"], fixed["x"])

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Keep g_i; the server knows its change from the model."""
        x, g, alpha = fixed["x"], fixed["g"], fixed["alpha"]
        return End(kept={_LINEAR: {name: g[name] - alpha * (params[name] - x[name]) for name in params}})
