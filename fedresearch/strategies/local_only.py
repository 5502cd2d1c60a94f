"""Training without a federation: each client alone, from the same initial model."""

from torch.nn import Module

from fedresearch.local.state_names import Names
from fedresearch.local.update import LocalUpdate


class Alone(LocalUpdate):
    """Train everything, keep everything."""

    def personal(self, model: Module) -> Names:
        """Return all of the model."""
        return frozenset(model.state_dict())
