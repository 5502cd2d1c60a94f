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

from collections.abc import Callable
from typing import Any

import numpy as np

from fedresearch.federation.replies import Replies
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors
from fedresearch.strategies.server import Params, ServerUpdate

_LOSS = "received-loss"
_LEAST_LOSS = 1e-10  # so that a power of 0 is finite; the authors' code adds as much


class QFedAvg(ServerUpdate):
    """The server.

    Parameters
    ----------
    q : float
        How much more a client with a larger loss weighs; 0: not at all.
    client_learning_rate : float
        1 / L.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, q: float, client_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.q, self.client_learning_rate = q, client_learning_rate

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Step along the clients' updates, weighed by powers of their losses; in double precision."""
        at_w, lipschitz = np.maximum(replies.sent[_LOSS]["F"], _LEAST_LOSS), 1 / self.client_learning_rate
        # F_k^q without a factor that cancels, so that none overflows and they do not all vanish.
        powers = (at_w / at_w.max()) ** self.q
        deltas, squares = {}, np.zeros_like(at_w)
        for name, w in x.items():
            updates = lipschitz * (w.astype(np.float64) - replies.params[name])
            deltas[name] = sum(power * update for power, update in zip(powers, updates, strict=True))
            squares += [np.sum(update**2) for update in updates]
        h = sum(powers * (self.q / at_w * squares + lipschitz))
        return {name: w - deltas[name] / h for name, w in x.items()}


class ReportingUpdate(LocalUpdate):
    """The client: FedAvg's, and its loss at the received model, which costs a pass over its training data."""

    def begin(self, start: Start) -> Fixed:
        """Keep ``F_k(w)``."""
        return {"F": start.loss(start.anchor)}

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Send ``F_k(w)``."""
        return End(sent={_LOSS: {"F": fixed["F"]}})
