"""FedBN (Li et al. 2021, "Federated Learning on Non-IID Features via Local Batch Normalization", arXiv:2102.07623).

The server is FedAvg's, over all but the BatchNorm layers.
"""

from torch.nn import Module

from fedresearch.local.state_names import Names, normalisation
from fedresearch.local.update import LocalUpdate


class LocalNormalization(LocalUpdate):
    """Train everything, keep the BatchNorm layers: their scales, shifts and running statistics."""

    def personal(self, model: Module) -> Names:
        """Return the BatchNorm layers.

        Raises
        ------
        ValueError
            If the model has none.
        """
        names = normalisation(model)
        if not names:
            raise ValueError("the model has no BatchNorm layer to keep; try model=resnet18 model.norm=batch")
        return names
