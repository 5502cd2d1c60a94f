"""FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127).

The server's half is Flower's: it averages as FedAvg and sends ``proximal-mu`` along. The client's half is here.
"""

from fedresearch.local.update import Fixed, LocalUpdate, Start, Term


class ProximalUpdate(LocalUpdate):
    """Minimise ``F_k(w) + mu/2 |w - w_t|^2`` (the paper's equation 2), w_t the global model's parameters."""

    def begin(self, start: Start) -> Fixed:
        """Keep the global model's parameters, and mu."""
        return {"anchor": start.anchor, "mu": start.config["proximal-mu"]}

    def term(self, fixed: Fixed) -> Term:
        """Add ``mu (w - w_t)``."""
        return Term(mu=fixed["mu"], anchor=fixed["anchor"])
