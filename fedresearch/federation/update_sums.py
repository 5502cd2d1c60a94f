"""What a round's row says of the clients' updates: sums over them, in double precision."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.federation.layout import HeldRows, Layout

# Numbers that are measured at once, and the least columns of them: few for a core's cache, and not too few in a row.
_AT_ONCE, _LEAST_COLUMNS = 2**17, 64
# Numbers that are measured at once on a GPU.
_AT_ONCE_ON_GPU = 2**26
# Numbers of a round's replies that are measured together. More of them are measured some clients at a time, so that the
# others' need not be kept.
_MOST_TOGETHER, _FEW_ROWS = 2**26, 4


def rows_at_once(layout: Layout, num_clients: int) -> int:
    """Return how many clients' rows are measured at once: all, or a few if they are large."""
    num_columns = sum(layout.num_columns.values())
    return num_clients if num_clients * num_columns <= _MOST_TOGETHER else min(_FEW_ROWS, num_clients)


class UpdateSums:
    """Sums over clients' updates, some clients at a time, in partition order.

    With unit vectors u_i, the sum of the cosines over pairs is ``(|sum u_i|^2 - n) / 2``, so that one vector is kept
    instead of one for each client. Clients whose numbers are not all finite count in no sum.

    Parameters
    ----------
    layout : Layout
        The places of the model's arrays. Its parameters are measured.
    origin : ArrayRecord
        The global model that the clients received.
    device : torch.device, optional
        The GPU on which the rows are, and the sums are formed; None: they are NumPy's.

    Attributes
    ----------
    norms : list of float
        The norm of each client's update; NaN where it is not finite.
    """

    def __init__(self, layout: Layout, origin: ArrayRecord, device: torch.device | None = None) -> None:
        self._device = device
        self._given: Any = functools.partial(torch.as_tensor, device=device) if device else np.asarray
        self._vecdot: Any = torch.linalg.vecdot if device else np.vecdot
        before = layout.row(origin)
        self._parts = {
            dtype: (self._given(before[dtype][0, :n].astype(np.float64)), self._given(np.zeros((2, n))))
            for dtype, n in layout.num_parameters.items()
        }
        self.norms: list[float] = []

    def add(self, rows: HeldRows, is_finite: NDArray[np.bool_]) -> None:
        """Add the next clients, given their rows, and whether all is finite that they send besides the parameters."""
        norms = self.lengths(rows, len(is_finite))
        norms[~(np.isfinite(norms) & is_finite)] = math.nan
        moved = norms > 0
        factors = self._given(np.stack([np.divide(1, norms, out=np.zeros_like(norms), where=moved), moved]))
        unmoved = self._given(~moved)
        for update, sums in self._updates(rows):
            update[unmoved] = 0  # zero times infinity is not zero
            sums += factors @ update
        self.norms += norms.tolist()

    def lengths(self, rows: HeldRows, num_rows: int) -> NDArray[np.float64]:
        """Return the distance of each row from the origin."""
        squares = self._given(np.zeros(num_rows))
        with np.errstate(invalid="ignore", over="ignore"):
            for update, _ in self._updates(rows):
                squares += self._vecdot(update, update)
            return np.sqrt(_read(squares))

    @property
    def cosine(self) -> float | None:
        """The mean cosine between two updates; None for fewer than two."""
        count = sum(norm > 0 for norm in self.norms)
        return (self._square(0) - count) / (count * (count - 1)) if count > 1 else None

    def cosines(self, rows: HeldRows) -> list[float]:
        """Return the cosine between each update and their mean, given all rows; NaN where one of them is zero."""
        sums_along, norms = self._given(np.zeros(len(self.norms))), np.array(self.norms)
        undefined = self._given(np.isnan(norms))
        for update, sums in self._updates(rows):
            update[undefined] = 0
            sums_along += update @ sums[1]
        along = _read(sums_along)
        lengths = norms * math.sqrt(self._square(1))
        found: list[float] = np.divide(along, lengths, out=np.full_like(norms, math.nan), where=lengths > 0).tolist()
        return found

    def _square(self, number: int) -> float:
        return float(sum(sums[number].dot(sums[number]) for _, sums in self._parts.values()))

    def _updates(self, rows: HeldRows) -> Iterator[tuple[Any, Any]]:
        """Yield the updates in double precision and their sums, some columns at a time, in one buffer."""
        for dtype, (before, sums) in self._parts.items():
            num_rows, num = len(rows[dtype]), len(before)
            width = max(_LEAST_COLUMNS, (_AT_ONCE_ON_GPU if self._device else _AT_ONCE) // num_rows)
            shape = num_rows, min(width, num)
            buffer: Any = (
                torch.empty(shape, dtype=torch.float64, device=self._device) if self._device else np.empty(shape)
            )
            for start in range(0, num, width):
                columns = slice(start, min(start + width, num))
                update = buffer[:, : columns.stop - start]
                update[:] = rows[dtype][:, columns]  # faster than a difference of two types
                update -= before[columns]
                yield update, sums[:, columns]


def _read(values: NDArray[np.float64] | Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.cpu().numpy() if isinstance(values, Tensor) else values
    return array
