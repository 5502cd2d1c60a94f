"""MOON (Li et al. 2021, "Model-Contrastive Federated Learning", arXiv:2103.16257). The server is FedAvg's.

With z, z_glob and z_prev the features of a sample under the model in training, the global model and the client's model
of its last round, the client minimises ``loss + mu l_con``, where (equation 3) ::

    l_con = -log(exp(sim(z, z_glob)/tau) / (exp(sim(z, z_glob)/tau) + exp(sim(z, z_prev)/tau)))

and sim is the cosine. The features are what the model's last layer reads; the paper's models end in a projection head
that is part of the model. In a client's first round z_prev = z_glob, and l_con has no gradient.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from fedresearch.local.objective import losses
from fedresearch.local.state_names import layers
from fedresearch.local.update import End, Fixed, LocalUpdate, Model, Stage, Start, Tensors

_PREVIOUS = "previous"


class ContrastiveUpdate(LocalUpdate):
    """The client.

    Parameters
    ----------
    mu : float
        Weight of the contrastive loss; 0 is FedAvg.
    temperature : float
        tau, above 0.
    """

    def __init__(self, mu: float, temperature: float) -> None:
        self.mu, self.temperature = mu, temperature

    def stages(self, model: Module) -> tuple[Stage, ...]:
        """Return the training of everything.

        Raises
        ------
        ValueError
            If the model has one layer, whose features are its inputs.
        """
        if len(layers(model)) < 2:
            raise ValueError("the model has one layer, so that its features are its inputs; try model=mlp")
        return super().stages(model)

    def begin(self, start: Start) -> Fixed:
        """Keep the global and the previous parameters."""
        return {"global": start.anchor, "previous": start.kept.get(_PREVIOUS, start.anchor)}

    def objective(self, model: Model, params: Tensors, x: Tensor, y: Tensor, fixed: Fixed) -> Tensor:
        """Return the losses and the contrastive losses."""
        outputs, z = model.features(params, x)
        to_global, to_previous = (
            F.cosine_similarity(z, model.features(fixed[which], x)[1], dim=1) / self.temperature
            for which in ("global", "previous")
        )
        return losses(outputs, y) + self.mu * F.softplus(to_previous - to_global)

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Keep the trained parameters."""
        return End(kept={_PREVIOUS: {name: tensor.clone() for name, tensor in params.items()}})
