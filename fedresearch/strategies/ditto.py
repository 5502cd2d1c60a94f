"""Ditto (Li et al. 2021, "Fair and Robust Federated Learning Through Personalization", arXiv:2012.04221, Algorithm 1).

The server is FedAvg's. Beside the global model, of which w is what it received, client k trains a model v_k of its own,
from where it left it, on ``F_k(v) + lambda/2 |v - w|^2``.
"""

from torch.nn import Module

from fedresearch.local.state_names import trainable
from fedresearch.local.update import Fixed, LocalUpdate, Stage, Start, Term


class DittoUpdate(LocalUpdate):
    """The client: FedAvg's, and a model of its own beside it.

    Parameters
    ----------
    lam : float
        How strongly the own model is drawn to the global one.
    personal_epochs : int or None
        Epochs of the own model; None: as the run's ``local`` section says.
    """

    def __init__(self, lam: float, personal_epochs: int | None) -> None:
        self.own_model = _Attracted(lam, personal_epochs)


class _Attracted(LocalUpdate):
    def __init__(self, lam: float, epochs: int | None) -> None:
        self.lam, self.epochs = lam, epochs

    def stages(self, model: Module) -> tuple[Stage, ...]:
        return (Stage(trainable(model), self.epochs),)

    def begin(self, start: Start) -> Fixed:
        return {"w": start.anchor}

    def term(self, fixed: Fixed) -> Term:
        return Term(mu=self.lam, anchor=fixed["w"])
