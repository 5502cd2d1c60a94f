"""Transforms of the samples of a batch: random ones in training only, fixed ones in evaluations too.

A transform draws first and is then a pure function of samples and numbers, so that many clients' batches can be
transformed at once. It sees samples as the dataset has them: pixels before they are normalised.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fedresearch.local.mixing import partners
from fedresearch.local.update import Tensors


class Transform(ABC):
    """What becomes of each sample of a batch; targets stay.

    Attributes
    ----------
    mixes : bool
        Whether it mixes each sample with a partner of its batch, ``partners(x, drawn)``. It then draws for one batch
        after another, also the ``weight`` of each sample's own target, ``(n,)``: the loss is the weighted mean of those
        for both targets.
    is_fixed : bool
        Whether it draws nothing, and holds in evaluations too.
    """

    mixes = False
    is_fixed = False

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return the random numbers for samples of a shape ``(n, ...)``: tensors ``(n, ...)`` by name."""

    @abstractmethod
    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the transformed samples without drawing, of the same shape."""

    def shape(self, shape: list[int]) -> list[int]:
        """Return the shape of a transformed sample."""
        return shape


class Fixed(Transform):
    """A function of samples that draws nothing.

    Parameters
    ----------
    function : callable
        From samples to samples, ``(n, ...)``.
    declared : sequence of int or None
        The shape of a transformed sample; None: as it was.
    """

    is_fixed = True

    def __init__(self, function: Callable[[Tensor], Tensor], declared: Sequence[int | None]) -> None:
        self._function, self._declared = function, declared

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return nothing."""
        return {}

    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the function's samples."""
        return self._function(x)

    def shape(self, shape: list[int]) -> list[int]:
        """Return the declared shape."""
        return [old if new is None else new for old, new in zip(shape, self._declared, strict=True)]


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


class Mixup(Transform):
    """Mix each sample with another one of its batch, and their losses alike (Zhang et al. 2018, arXiv:1710.09412).

    As in the paper's implementation, a batch has one weight ``lambda ~ Beta(alpha, alpha)``, and the partners are the
    batch in random order. Mixed pixels are not rounded.

    Parameters
    ----------
    alpha : float
        The paper's alpha: towards 0, samples stay unmixed.
    """

    mixes = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensors:
        """Return the batch's weight, for each sample."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        return {"weight": torch.full(shape[:1], rng.beta(self.alpha, self.alpha), dtype=torch.float64)}

    def apply(self, x: Tensor, drawn: Tensors) -> Tensor:
        """Return the mixed samples."""
        x = x if x.is_floating_point() else x.float()
        weight = drawn["weight"].to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return weight * x + (1 - weight) * partners(x, drawn)


def resize(x: Tensor, *, height: int, width: int) -> Tensor:
    """Return images of a size, by bilinear interpolation with averaging where they become smaller, without rounding."""
    x = x if x.is_floating_point() else x.float()
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)


def to_rgb(x: Tensor) -> Tensor:
    """Return images with three channels: grey ones have their channel three times."""
    return x.expand(-1, 3, -1, -1)
