"""Random transforms of the samples of a batch, in training only.

A transform draws first and is then a pure function of samples and numbers, so that many clients' batches can be
transformed at once. It sees samples as the dataset has them: pixels before they are normalised.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fedresearch.local.update import Tensors


class Transform(ABC):
    """What becomes of each sample of a batch; targets stay."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return the random numbers for samples of a shape ``(n, *input_shape)``: tensors ``(n, ...)`` by name."""

    @abstractmethod
    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the transformed samples, ``(n, *input_shape)``, without drawing."""


class Crop(Transform):
    """Pad images with zeros on all sides, and cut out their size at a random place.

    Parameters
    ----------
    padding : int
        Pixels on each side.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return the first row and the first column of each image."""
        places = torch.randint(2 * self.padding + 1, (2, shape[0]), generator=generator)
        return {"top": places[0], "left": places[1]}

    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the cut images, ``(n, channels, height, width)``."""
        num_images, num_channels, height, width = x.shape
        rows = drawn["top"][:, None] + torch.arange(height, device=x.device)
        columns = drawn["left"][:, None] + torch.arange(width, device=x.device)
        images = torch.arange(num_images, device=x.device)[:, None, None, None]
        channels = torch.arange(num_channels, device=x.device)[None, :, None, None]
        return F.pad(x, (self.padding,) * 4)[images, channels, rows[:, None, :, None], columns[:, None, None, :]]


class Flip(Transform):
    """Mirror images left to right.

    Parameters
    ----------
    probability : float
        Of each image.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return which images are mirrored."""
        return {"is_flipped": torch.rand(shape[0], generator=generator) < self.probability}

    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the images, ``(n, channels, height, width)``."""
        return torch.where(drawn["is_flipped"][:, None, None, None], x.flip(-1), x)
