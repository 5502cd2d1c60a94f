"""FedBABU (Oh et al. 2022, "Toward Enhanced Representation for Federated Image Classification", arXiv:2106.06042).

The server is FedAvg's, over the body.
"""

from collections.abc import Sequence

from torch.nn import Module

from fedresearch.local.state_names import trainable
from fedresearch.local.update import Stage
from fedresearch.strategies.fedper import PersonalHead


class BodyOnly(PersonalHead):
    """Train the body under the initial head, which nobody trains; fine-tune a head for each evaluation.

    Parameters
    ----------
    head : sequence of str or None
        Names of the modules that are the head; None: the model's last layer.
    finetune_epochs : int or None
        Epochs of the head, on the client's training data, before its own model is evaluated; None: as the run's
        ``local`` section says.
    """

    def __init__(self, head: Sequence[str] | None, finetune_epochs: int | None) -> None:
        super().__init__(head)
        self.finetune_epochs = finetune_epochs

    def stages(self, model: Module) -> tuple[Stage, ...]:
        """Return the body's training."""
        return (Stage(trainable(model) - self.personal(model)),)

    def adaptation(self, model: Module) -> tuple[Stage, ...]:
        """Return the head's."""
        return (Stage(self.personal(model) & trainable(model), self.finetune_epochs),)
