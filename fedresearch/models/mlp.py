"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden layers of the given widths with ReLU, then a linear output.

    Widths 200, 200 make the "2NN" of McMahan et al. 2017 (arXiv:1602.05629, section 3).

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one sample, which is flattened.
    num_classes : int
        Number of outputs.
    widths : sequence of int
        Units of each hidden layer, input side first.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        hidden = [
            layer
            for num_in, num_out in pairwise([prod(input_shape), *widths])
            for layer in (nn.Linear(num_in, num_out), nn.ReLU())
        ]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear([prod(input_shape), *widths][-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of shape ``(n, num_classes)`` for inputs of shape ``(n, *input_shape)``."""
        logits: Tensor = self.layers(x)
        return logits
