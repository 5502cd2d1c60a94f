"""FedNova (Wang et al. 2020, "Tackling the Objective Inconsistency Problem", arXiv:2007.07481).

Clients that take more steps pull further than their share of the data. With ``|a_i|_1`` the weight of a client's local
gradients in its update (its number of steps tau_i, for plain SGD) and p_i its share of the examples, equation 8 is ::

    x+ = x - tau_eff sum_i p_i (x - y_i) / |a_i|_1

with ``tau_eff = sum_i p_i |a_i|_1``, or ``sum_i p_i tau_i`` with a proximal term, as in the paper's experiments. What a
client's gradients weigh follows from its optimizer: see :func:`fedresearch.local.train.drift`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedresearch.federation.records import NUM_STEPS
from fedresearch.federation.replies import Replies
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors, Term
from fedresearch.strategies.server import Params, Sent, ServerUpdate

_WEIGHT = "gradient-weight"
_MU = "proximal-mu"


class FedNova(ServerUpdate):
    """The server.

    Parameters
    ----------
    proximal_mu : float
        Weight of a proximal term on the clients, as in FedProx; 0: none.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, proximal_mu: float, **options: Any) -> None:
        super().__init__(**options)
        self.proximal_mu = proximal_mu

    def send(self, x: Params) -> Sent:
        """Send mu along."""
        return {_MU: self.proximal_mu}

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Average the clients' updates, each brought to the same weight of gradients."""
        a = replies.sent[_WEIGHT]["a"]
        tau_eff = np.average(replies.metrics[NUM_STEPS] if self.proximal_mu else a, weights=replies.weights)
        scales = (tau_eff / a).tolist()
        return {
            name: replies.mean(  # with the scale 1 a model stays, bit for bit, what FedAvg averages
                y if scale == 1 else w + (y - w) * scale for y, scale in zip(replies.params[name], scales, strict=True)
            )
            for name, w in x.items()
        }


class NormalizedUpdate(LocalUpdate):
    """The client: the loss with or without a proximal term, and what its gradients weighed."""

    def begin(self, start: Start) -> Fixed:
        """Keep x, mu and the learning rate."""
        return {"x": start.anchor, "mu": start.config[_MU], "lr": start.config["lr"]}

    def term(self, fixed: Fixed) -> Term:
        """Add ``mu (w - x)``."""
        return Term(mu=fixed["mu"], anchor=fixed["x"])

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Send ``|a_i|_1``."""
        weight = drift(fixed["mu"]) / fixed["lr"]
        return End(sent={_WEIGHT: {"a": torch.tensor(weight, dtype=torch.float64)}})
