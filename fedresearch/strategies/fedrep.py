"""FedRep (Collins et al. 2021, "Exploiting Shared Representations for Personalized FL", arXiv:2102.07078), Algorithm 1.

The server is FedAvg's, over the body.
"""

from collections.abc import Sequence

from torch.nn import Module

from fedresearch.local.state_names import trainable
from fedresearch.local.update import Stage
from fedresearch.strategies.fedper import PersonalHead


class HeadThenBody(PersonalHead):
    """Train the head on the received body, then the body under that head; keep the head.

    Parameters
    ----------
    head : sequence of str or None
        Names of the modules that are the head; None: the model's last layer.
    head_epochs : int or None
        Epochs of the head; the body is trained as the run's ``local`` section says, and so is the head with None.
    """

    def __init__(self, head: Sequence[str] | None, head_epochs: int | None) -> None:
        super().__init__(head)
        self.head_epochs = head_epochs

    def stages(self, model: Module) -> tuple[Stage, ...]:
        """Return the head's training and the body's."""
        head, moving = self.personal(model), trainable(model)
        return (Stage(head & moving, self.head_epochs), Stage(moving - head))
