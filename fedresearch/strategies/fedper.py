"""FedPer (Arivazhagan et al. 2019, "Federated Learning with Personalization Layers", arXiv:1912.00818).

The server is FedAvg's, over the body.
"""

from collections.abc import Sequence

from torch.nn import Module

from fedresearch.local.state_names import Names, head, parameters
from fedresearch.local.update import LocalUpdate


class PersonalHead(LocalUpdate):
    """Train body and head together, keep the head.

    Parameters
    ----------
    head : sequence of str or None
        Names of the modules that are the head; None: the model's last layer.
    """

    def __init__(self, head: Sequence[str] | None) -> None:
        self.head = head

    def personal(self, model: Module) -> Names:
        """Return the head.

        Raises
        ------
        ValueError
            If the model has no such module, or nothing beside its head.
        """
        names = head(model, self.head)
        if parameters(model) <= names:
            raise ValueError("the head is the whole model, so that nothing is shared; try strategy=local_only")
        return names
