"""A dataset before it is partitioned: arrays of samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.errors import InputError

# Indices of rows of an array.
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Samples of one split as contiguous arrays.

    Attributes
    ----------
    x : Tensor
        Inputs of shape ``(n, *input_shape)``: floats that are ready for a model, int64 tokens, or uint8 pixels.
    y : Tensor
        Targets: int64 class indices of shape ``(n,)``, or for a regression floats of shape ``(n, num_outputs)``.
    natural_id : ndarray or None
        The origin of each sample, such as a writer or a device, of shape ``(n,)``; None: unknown.
    """

    x: Tensor
    y: Tensor
    natural_id: NDArray[np.generic] | None = None


@dataclass(frozen=True)
class Normalisation:
    """Makes a model's inputs of pixels: scaled to [0, 1], then shifted and scaled for each channel.

    Pixels are normalised batch by batch, since bytes take a quarter of the memory of floats.

    Attributes
    ----------
    mean, std : Tensor
        For each channel, ``(channels, 1, 1)``.
    dtype : torch.dtype
        Of the result; it is computed in single precision.
    """

    mean: Tensor
    std: Tensor
    dtype: torch.dtype = torch.float32

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the inputs for uint8 pixels ``(..., channels, height, width)``."""
        return pixels.to(torch.float32).div(255).sub(self.mean).div(self.std).to(self.dtype)

    def to(self, device: torch.device | str) -> "Normalisation":
        """Return the same for pixels on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))


@dataclass(frozen=True)
class Source:
    """A dataset: the split that is partitioned among the clients, and the test split that the server keeps.

    Attributes
    ----------
    train, test : Samples
        The splits.
    normalise : Normalisation or None
        For inputs that are pixels; None: the inputs are ready for a model.
    """

    train: Samples
    test: Samples
    normalise: Normalisation | None = None


def check_source(source: Source, declared: Mapping[str, Any], dataset: str) -> None:
    """Check a dataset against the arrays described above, and against the declarations of its YAML file.

    Parameters
    ----------
    source : Source
        The loaded dataset.
    declared : mapping
        ``input``, ``input_shape``, ``num_classes`` and ``columns``, from ``declares`` of the YAML file.
    dataset : str
        The option's name, for the messages.

    Raises
    ------
    InputError
        With one line for each fault.
    """
    lines = [
        f"dataset={dataset}: {name} {fault}"
        for name, samples in (("train", source.train), ("test", source.test))
        for fault in _faults(samples, declared, source.normalise is not None)
    ]
    if "natural_id" in declared["columns"] and source.train.natural_id is None:
        lines.append(f"dataset={dataset} declares the column natural_id, which is missing in its training samples")
    if lines:
        raise InputError(*lines)


def _faults(samples: Samples, declared: Mapping[str, Any], is_normalised: bool) -> Iterator[str]:
    x, y, natural_id = samples.x, samples.y, samples.natural_id
    if not (torch.is_tensor(x) and torch.is_tensor(y)):
        yield f"must hold tensors, got {type(x).__name__} and {type(y).__name__}"  # type: ignore[unreachable]
        return
    if not 0 < len(x) == len(y):
        yield f"must hold as many inputs as targets, at least one, got {len(x)} and {len(y)}"
        return
    if natural_id is not None:
        if len(natural_id) != len(x):
            yield f"must hold a natural id for each of {len(x)} inputs, got {len(natural_id)}"
        is_mixed = np.asarray(natural_id).dtype == object
        kinds = sorted({type(value).__name__ for value in natural_id}) if is_mixed else ()
        if len(kinds) > 1:
            yield f"must hold natural ids of one type, got {' and '.join(kinds)}"
    shape, declared_shape = list(x.shape[1:]), declared["input_shape"]
    if shape != declared_shape:
        yield f"holds inputs of shape {shape}, but dataset.declares.input_shape is {declared_shape}"
    if is_normalised:
        wanted, is_right_type = "uint8", x.dtype == torch.uint8
    elif declared["input"] == "tokens":
        wanted, is_right_type = "int64", x.dtype == torch.int64
    else:
        wanted, is_right_type = "floating-point", x.is_floating_point()
    if not is_right_type:
        yield f"must hold {wanted} inputs (dataset.declares.input is {declared['input']}), got {x.dtype}"
    elif not torch.isfinite(x).all():
        yield "holds inputs that are not finite"
    num_classes = declared["num_classes"]
    if y.is_floating_point():
        if list(y.shape[1:]) != [num_classes]:
            yield f"holds targets of shape {list(y.shape)}, a regression needs [{len(y)}, {num_classes}] (num_classes)"
    elif y.dtype != torch.int64 or y.ndim != 1:
        yield f"must hold int64 class indices of shape [{len(y)}], got {y.dtype} of shape {list(y.shape)}"
    elif not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        yield f"holds labels from {int(y.min())} to {int(y.max())}, but dataset.declares.num_classes is {num_classes}"
