"""A partitioned dataset: contiguous arrays, and the position of each client's samples in them."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.data.source import Normalisation, Rows, Source


@dataclass(frozen=True)
class FederatedData:
    """The clients' samples, partition by partition in contiguous arrays, and the server's test split.

    Attributes
    ----------
    train, validation : sequence of ndarray
        For each partition, the rows of the dataset's training split for training and for validation.
    x, y : Tensor
        All partitions' samples one after another, of shapes ``(n, *input_shape)`` and ``(n, ...)``; in each partition
        the training samples are first. Clients read views of them, not copies. ``prepare`` makes a model's inputs of x.
    test_x, test_y : Tensor
        The server's test split.
    num_samples : int
        Number of samples of the dataset's training split, whether a client holds them or not.
    classes : ndarray
        The classes in the training split; empty for a regression.
    normalise : Normalisation or None
        For samples that are pixels.
    """

    train: Sequence[Rows]
    validation: Sequence[Rows]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_samples: int
    classes: NDArray[np.int64]
    normalise: Normalisation | None = None

    @classmethod
    def build(
        cls, source: Source, train: Sequence[Rows], validation: Sequence[Rows], dtype: torch.dtype
    ) -> "FederatedData":
        """Gather the partitions' samples, with floating-point arrays in ``dtype``."""
        parts = [rows for pair in zip(train, validation, strict=True) for rows in pair]
        order = torch.from_numpy(np.concatenate(parts))

        def cast(array: Tensor) -> Tensor:
            return array.to(dtype) if array.is_floating_point() else array

        samples, test = source.train, source.test
        x, y = cast(samples.x[order]), cast(samples.y[order])
        classes = np.unique(samples.y.numpy()) if not samples.y.is_floating_point() else np.zeros(0, np.int64)
        normalise = source.normalise and replace(source.normalise, dtype=dtype)
        return cls(train, validation, x, y, cast(test.x), cast(test.y), len(samples.y), classes, normalise)

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return len(self.train)

    @property
    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Makes a model's inputs of samples' x."""
        return self.normalise or _unchanged

    def train_samples(self, partition_id: int) -> tuple[Tensor, Tensor]:
        """Return views of one client's training inputs and targets."""
        start, split, _ = self._bounds[partition_id]
        return self.x[start:split], self.y[start:split]

    def pool(self, partition_ids: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any], Rows, Rows]:
        """Return the samples of many clients, and of each client its first training sample and their number.

        Samples are rows, ``(n, d)``; so are targets in floating point. Classes are ``(n,)``.
        """
        starts, splits, _ = self._table.take(partition_ids, axis=1)  # faster than as an index
        return *self._flat, starts, splits - starts

    def validation_samples(self, partition_id: int) -> tuple[Tensor, Tensor]:
        """Return views of one client's validation inputs and targets."""
        _, split, stop = self._bounds[partition_id]
        return self.x[split:stop], self.y[split:stop]

    def pooled(self) -> "FederatedData":
        """Return the data with all training samples on the first client; validation samples stay where they are."""
        ids = range(self.num_partitions)
        parts = [self.train_samples(i) for i in ids] + [self.validation_samples(i) for i in ids]
        x, y = (torch.cat(arrays) for arrays in zip(*parts, strict=True))
        train = [np.concatenate(self.train), *([self.train[0][:0]] * (self.num_partitions - 1))]
        return replace(self, train=train, x=x, y=y)

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format
    ) -> "FederatedData":
        """Return the data on a device, with images in a memory format."""

        def move(array: Tensor) -> Tensor:
            is_image = array.dim() == 4
            return array.to(device, memory_format=memory_format if is_image else torch.preserve_format)

        x, y, test_x, test_y = map(move, (self.x, self.y, self.test_x, self.test_y))
        normalise = self.normalise and self.normalise.to(device)
        return replace(self, x=x, y=y, test_x=test_x, test_y=test_y, normalise=normalise)

    def without_test(self) -> "FederatedData":
        """Return the data without the server's test split."""
        return replace(self, test_x=self.test_x[:0], test_y=self.test_y[:0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the samples as NumPy arrays, which pickle protocol 5 does not copy; they return to their device."""
        arrays = (self.x, self.y, self.test_x, self.test_y)
        rest = (self.num_samples, self.classes, self.normalise)
        return _remake, (self.train, self.validation, rest, self.x.device, *(array.cpu().numpy() for array in arrays))

    def sample(self, partition_id: int, num_samples: int) -> "FederatedData":
        """Return the data of one client with its first training samples only."""
        x, y = self.train_samples(partition_id)
        train = [self.train[partition_id][:num_samples]]
        return replace(self, train=train, validation=[train[0][:0]], x=x[:num_samples], y=y[:num_samples])

    def in_double(self) -> "FederatedData":
        """Return the clients' samples in double precision."""
        x, y = (array.double() if array.is_floating_point() else array for array in (self.x, self.y))
        return replace(self, x=x, y=y, normalise=self.normalise and replace(self.normalise, dtype=torch.float64))

    def targets(self) -> Iterator[Tensor]:
        """Yield each client's targets: of its training samples, then of its validation samples."""
        for start, _, stop in self._bounds:
            yield self.y[start:stop]

    def trained_classes(self) -> NDArray[np.int64]:
        """Return the classes of the clients' training samples."""
        return np.unique(np.concatenate([self.train_samples(i)[1].cpu().numpy() for i in range(self.num_partitions)]))

    def partition_sha256(self) -> str:
        """Return a SHA-256 over the rows of each client, independent of their split and order."""
        return _sha256([np.sort(np.concatenate(pair)) for pair in zip(self.train, self.validation, strict=True)])

    def validation_sha256(self) -> str:
        """Return a SHA-256 over the validation rows of each client, in their order."""
        return _sha256(self.validation)

    @cached_property
    def _table(self) -> Rows:
        return np.array([*zip(*self._bounds, strict=True)], np.int64)

    @cached_property
    def _flat(self) -> tuple[NDArray[Any], NDArray[Any]]:
        y = self.y.flatten(1) if self.y.is_floating_point() else self.y
        return self.x.flatten(1).numpy(), y.numpy()

    @cached_property
    def _bounds(self) -> list[tuple[int, int, int]]:
        sizes = [(len(t), len(v)) for t, v in zip(self.train, self.validation, strict=True)]
        starts = np.cumsum([0, *(t + v for t, v in sizes)]).tolist()
        return [(start, start + t, start + t + v) for start, (t, v) in zip(starts, sizes, strict=False)]


def _remake(
    train: Sequence[Rows],
    validation: Sequence[Rows],
    rest: tuple[Any, ...],
    device: torch.device,
    *arrays: NDArray[Any],
) -> FederatedData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes into samples
        x, y, test_x, test_y = (torch.from_numpy(array).to(device) for array in arrays)
    return FederatedData(train, validation, x, y, test_x, test_y, *rest)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _sha256(parts: Sequence[Rows]) -> str:
    sha = hashlib.sha256()
    for rows in parts:
        sha.update(len(rows).to_bytes(8, "little"))
        sha.update(rows.astype("<i8").tobytes())
    return sha.hexdigest()
