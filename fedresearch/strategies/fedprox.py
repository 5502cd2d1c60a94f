"""FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127).

The server's half is Flower's: it averages as FedAvg and sends ``proximal-mu`` along. The client's half is here.
"""

from fedresearch.local.update import Fixed, LocalUpdate, Start, Tensors


def attract(gradients: Tensors, params: Tensors, anchor: Tensors, mu: float) -> Tensors:
    """Return the gradients with that of ``mu/2 |w - anchor|^2`` added."""
    return {name: gradient + mu * (params[name] - anchor[name]) for name, gradient in gradients.items()}


class ProximalUpdate(LocalUpdate):
    """Minimise ``F_k(w) + mu/2 |w - w_t|^2`` (the paper's equation 2), w_t the global model's parameters."""

    def begin(self, start: Start) -> Fixed:
        """Keep the global model's parameters, and mu."""
        return {"anchor": start.anchor, "mu": start.config["proximal-mu"]}

    def correct(self, gradients: Tensors, params: Tensors, fixed: Fixed) -> Tensors:
        """Add ``mu (w - w_t)``."""
        return attract(gradients, params, fixed["anchor"], fixed["mu"])
