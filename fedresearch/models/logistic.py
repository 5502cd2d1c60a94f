"""Multinomial logistic regression: one linear layer on the flattened input."""

from math import prod

from torch import Tensor, nn


class Logistic(nn.Module):
    """Multinomial logistic regression; its convex loss has closed forms against which optima are tested.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one sample, of any number of dimensions.
    num_classes : int
        Number of outputs.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(prod(input_shape), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of shape ``(n, num_classes)`` for inputs of shape ``(n, *input_shape)``."""
        logits: Tensor = self.linear(x.flatten(1))
        return logits
