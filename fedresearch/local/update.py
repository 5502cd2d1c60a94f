"""The client half of a strategy: what one client does in its round, as functions of tensors."""

from collections.abc import Callable, Mapping

from torch import Tensor

from fedresearch.local.objective import loss_for

# A model's parameters, or what goes with them, by name.
Tensors = Mapping[str, Tensor]


class LocalUpdate:
    """Plain local training, FedAvg's (McMahan et al. 2017, arXiv:1602.05629, ClientUpdate): minimise the loss.

    A strategy overrides what it changes. The methods are pure: they read their arguments and return tensors, so that
    they can be called for one client or, under ``torch.func.vmap``, for many at once.
    """

    def begin(self, anchor: Tensors, config: Mapping[str, float]) -> Tensors:
        """Return what stays fixed during the round.

        Parameters
        ----------
        anchor : mapping of str to Tensor
            The global model's parameters.
        config : mapping of str to float
            The numbers that the server sent with them, under the keys of its ``ConfigRecord``.
        """
        return {}

    def objective(
        self, forward: Callable[[Tensor], Tensor], params: Tensors, x: Tensor, y: Tensor, fixed: Tensors
    ) -> Tensor:
        """Return the scalar that one local step descends.

        Parameters
        ----------
        forward : callable
            The model with its current parameters: inputs to outputs.
        params : mapping of str to Tensor
            Those parameters.
        x, y : Tensor
            One batch: inputs ``(b, *input_shape)`` and targets ``(b, ...)``.
        fixed : mapping of str to Tensor
            What ``begin`` returned.
        """
        return loss_for(y)(forward(x), y)
