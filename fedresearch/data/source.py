"""A dataset before it is partitioned: arrays of samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
        Inputs of shape ``(n, *input_shape)``: floats, normalised and ready for a model, or int64 tokens.
    y : Tensor
        Targets: int64 class indices of shape ``(n,)``, or for a regression floats of shape ``(n, num_outputs)``.
    natural_id : ndarray or None
        The origin of each sample, such as a writer or a device, of shape ``(n,)``; None: unknown.
    """

    x: Tensor
    y: Tensor
    natural_id: NDArray[np.generic] | None = None


@dataclass(frozen=True)
class Source:
    """A dataset: the split that is partitioned among the clients, and the test split that the server keeps."""

    train: Samples
    test: Samples


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
        for fault in _faults(samples, declared)
    ]
    if "natural_id" in declared["columns"] and source.train.natural_id is None:
        lines.append(f"dataset={dataset} declares the column natural_id, which is missing in its training samples")
    if lines:
        raise InputError(*lines)


def _faults(samples: Samples, declared: Mapping[str, Any]) -> Iterator[str]:
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
    is_right_type = x.dtype == torch.int64 if declared["input"] == "tokens" else x.is_floating_point()
    if not is_right_type:
        wanted = "int64" if declared["input"] == "tokens" else "floating-point"
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
