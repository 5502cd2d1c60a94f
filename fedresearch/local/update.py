"""The client half of a strategy: what one client does in its round, as a function of tensors."""

from collections.abc import Callable

from torch import Tensor

from fedresearch.local.objective import loss_for


class LocalUpdate:
    """Plain local training, FedAvg's (McMahan et al. 2017, arXiv:1602.05629, ClientUpdate): minimise the loss.

    A strategy that changes what clients do overrides what it changes.
    """

    def objective(self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar that one local step descends.

        Parameters
        ----------
        forward : callable
            The model with its current parameters: inputs to outputs.
        x, y : Tensor
            One batch: inputs ``(b, *input_shape)`` and targets ``(b, ...)``.
        """
        return loss_for(y)(forward(x), y)
