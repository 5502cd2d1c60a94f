"""SCAFFOLD (Karimireddy et al. 2020, "Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378).

Algorithm 1: client i descends ``g_i(y) - c_i + c``, where the control variate c_i estimates its gradient and c the mean
of all clients' gradients; after K steps of size eta_l from x to y_i, ::

    c_i+ = grad f_i(x)                              option I
    c_i+ = c_i - c + (x - y_i) / (K eta_l)          option II
    x+   = x + eta_g mean_S (y_i - x)
    c+   = c + |S|/N mean_S (c_i+ - c_i)

Two generalisations, each the paper's where the paper speaks: with momentum, ``K eta_l`` is what the steps' gradients
weigh in all (``LocalUpdate.end``'s drift); and clients that are weighed by their examples weigh so in c too, without
which the fixed point would not be the optimum. A client that was never drawn has c_i = 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fedresearch.federation.replies import Replies
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors, Term
from fedresearch.strategies.client_mean import ClientMean
from fedresearch.strategies.server import Params, Sent, ServerUpdate

_VARIATE = "control-variate"
_CHANGE = "control-variate-change"


class Scaffold(ServerUpdate):
    """The server.

    Parameters
    ----------
    server_learning_rate : float
        eta_g.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, server_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self.variate = ClientMean()

    def send(self, x: Params) -> Sent:
        """Send c along."""
        return {_VARIATE: self.variate.mean(x, self.num_clients)}

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Step towards the mean model, and add the changes of the control variates to c."""
        once = replies.once()
        self.variate.add(once, once.sent[_CHANGE])
        if self.server_learning_rate == 1:
            return mean
        return {name: x[name] + self.server_learning_rate * (mean[name] - x[name]) for name in x}

    def diagnostics(self) -> Mapping[str, float]:
        """Return the norm of c+."""
        return {"variate_norm": self.variate.norm(self.num_clients)}


class ScaffoldUpdate(LocalUpdate):
    """The client.

    Parameters
    ----------
    option : str
        ``"I"``: the control variate is the gradient at the global model, over all of the client's samples, which costs
        a further pass. ``"II"``: it is the mean gradient of the client's steps.
    """

    def __init__(self, option: str) -> None:
        self._by_gradient = option == "I"

    def begin(self, start: Start) -> Fixed:
        """Return x, c, c_i, and the gradient at x where option I asks for it."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in start.anchor.items()}
        fixed = {"x": start.anchor, "c": zeros | dict(start.received[_VARIATE]), "c_i": start.kept.get(_VARIATE, zeros)}
        return fixed | ({"gradient": start.gradient(start.anchor)} if self._by_gradient else {})

    def term(self, fixed: Fixed) -> Term:
        """Subtract c_i and add c."""
        c, c_i = fixed["c"], fixed["c_i"]
        return Term({name: c[name] - c_i[name] for name in fixed["x"]})

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Send the change of c_i and keep it."""
        x, c, c_i = fixed["x"], fixed["c"], fixed["c_i"]
        if self._by_gradient:
            new = fixed["gradient"]
        else:
            weight = drift(0.0)
            new = {name: c_i[name] - c[name] + (x[name] - params[name]) / weight for name in params}
        change = {name: new[name] - c_i[name] for name in params}
        return End(sent={_CHANGE: change}, kept={_VARIATE: new})
