"""A model's arrays as a row of numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.federation.records import view
from fedresearch.local.state_names import Names

# One row, or one for each client, by dtype: ``(n, columns)``.
Rows = dict[np.dtype[Any], NDArray[Any]]
# The same where they are: in this process's memory, or on a GPU.
HeldRows = Mapping[np.dtype[Any], NDArray[Any] | Tensor]


class Place(NamedTuple):
    """Where an array is in a row."""

    dtype: np.dtype[Any]
    columns: slice
    shape: tuple[int, ...]


class Layout:
    """The places of a model's arrays: a row for each dtype, with the parameters before all else.

    Parameters
    ----------
    arrays : ArrayRecord
        The model.
    parameters : set of str
        The names of those arrays that are parameters.

    Attributes
    ----------
    places : dict of str to Place
        The places by name, in the model's order.
    num_columns, num_parameters : dict of dtype to int
        The length of a row, and how many of its first numbers are parameters.
    """

    def __init__(self, arrays: ArrayRecord, parameters: Names) -> None:
        places: dict[str, Place] = {}
        self.num_columns: dict[np.dtype[Any], int] = {}
        self.num_parameters: dict[np.dtype[Any], int] = {}
        for name, array in sorted(arrays.items(), key=lambda item: item[0] not in parameters):
            dtype, shape = np.dtype(array.dtype), tuple(array.shape)
            start = self.num_columns.get(dtype, 0)
            stop = self.num_columns[dtype] = start + math.prod(shape)
            places[name] = Place(dtype, slice(start, stop), shape)
            self.num_parameters[dtype] = stop if name in parameters else self.num_parameters.get(dtype, 0)
        self.places = {name: places[name] for name in arrays}

    def rows(self, num_rows: int) -> Rows:
        """Return rows without values."""
        return {dtype: np.empty((num_rows, columns), dtype) for dtype, columns in self.num_columns.items()}

    def sizes(self, num_rows: int) -> list[int]:
        """Return the bytes of rows of each dtype."""
        return [num_rows * columns * dtype.itemsize for dtype, columns in self.num_columns.items()]

    def rows_in(self, parts: Sequence[memoryview], num_rows: int, first: int = 0) -> Rows:
        """Return rows from a first one on, in a memory with a part for each dtype."""
        return {
            dtype: np.ndarray((num_rows, columns), dtype, part, first * columns * dtype.itemsize)
            for part, (dtype, columns) in zip(parts, self.num_columns.items(), strict=True)
        }

    def rows_on(self, device: torch.device, num_rows: int) -> dict[np.dtype[Any], Tensor]:
        """Return rows without values on a device."""
        return {
            dtype: torch.empty((num_rows, columns), dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)
            for dtype, columns in self.num_columns.items()
        }

    def row(self, arrays: ArrayRecord) -> Rows:
        """Return a model as one row."""
        rows = self.rows(1)
        for name, (dtype, columns, _) in self.places.items():
            rows[dtype][0, columns] = view(arrays[name]).ravel()
        return rows
