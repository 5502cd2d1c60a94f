"""What a round's row says of the clients' updates: sums over them, in double precision."""

import functools
import math
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedresearch.federation.layout import HeldRows, Layout
from fedresearch.federation.records import view
from fedresearch.federation.row_sums import add_moved, products
from fedresearch.local.state_names import Names

# Numbers of a round's replies that are measured together. More of them are measured some clients at a time, so that the
# others' need not be kept: while a block is added, the next one is filled.
_MOST_TOGETHER, _FEW_ROWS = 2**26, 2
# Numbers of a sum that are squared at once.
_AT_ONCE = 2**17


def rows_at_once(layout: Layout, num_clients: int) -> int:
    """Return how many clients' rows are measured at once: all, or a few if they are large."""
    num_columns = sum(layout.num_columns.values())
    if num_clients * num_columns <= _MOST_TOGETHER:
        return num_clients
    return min(max(_FEW_ROWS, _MOST_TOGETHER // 2 // num_columns), num_clients)


def distance(arrays: ArrayRecord, origin: ArrayRecord, names: Names) -> float:
    """Return the distance between the arrays of some names of two models."""
    named = ((view(arrays[name]), view(origin[name])) for name in arrays if name in names)
    return math.sqrt(sum(float(products(new.reshape(1, -1), old.ravel())[0]) for new, old in named))


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
    to_mean : bool
        Whether :meth:`cosines` is needed.

    Attributes
    ----------
    norms : list of float
        The norm of each client's update; NaN where it is not finite.
    """

    def __init__(
        self, layout: Layout, origin: ArrayRecord, device: torch.device | None = None, *, to_mean: bool = True
    ) -> None:
        given: Any = functools.partial(torch.as_tensor, device=device) if device else np.asarray
        before = layout.row(origin)
        # By dtype: the number of parameters, the origin, and the sums of the unit updates and of the updates.
        self._parts = {
            dtype: (n, given(before[dtype][0, :n]), given(np.zeros((1 + to_mean, n))))
            for dtype, n in layout.num_parameters.items()
        }
        self._to_mean = to_mean
        self.norms: list[float] = []

    def add(self, rows: HeldRows, is_finite: NDArray[np.bool_]) -> None:
        """Add the next clients, given their rows, and whether all is finite that they send besides the parameters."""
        norms = np.zeros(len(is_finite))
        for dtype, (n, origin, _) in self._parts.items():
            norms += products(rows[dtype][:, :n], origin)
        norms = np.sqrt(norms)
        norms[~(np.isfinite(norms) & is_finite)] = math.nan
        moved = norms > 0
        factors = np.zeros((1 + self._to_mean, len(norms)))
        np.divide(1, norms, out=factors[0], where=moved)
        factors[1:] = moved
        for dtype, (n, origin, sums) in self._parts.items():
            add_moved(rows[dtype][:, :n], origin, factors, sums)
        self.norms += norms.tolist()

    @property
    def cosine(self) -> float | None:
        """The mean cosine between two updates; None for fewer than two."""
        count = sum(norm > 0 for norm in self.norms)
        return (self._square(0) - count) / (count * (count - 1)) if count > 1 else None

    def cosines(self, rows: HeldRows) -> list[float]:
        """Return the cosine between each update and their mean, given all rows; NaN where one of them is zero."""
        norms = np.array(self.norms)
        along = np.zeros_like(norms)
        for dtype, (n, origin, sums) in self._parts.items():
            along += products(rows[dtype][:, :n], origin, sums[1])
        lengths = norms * math.sqrt(self._square(1))
        found: list[float] = np.divide(along, lengths, out=np.full_like(norms, math.nan), where=lengths > 0).tolist()
        return found

    def _square(self, number: int) -> float:
        """Return the square of a sum's length."""
        square: Any = 0.0
        for n, _, sums in self._parts.values():
            for start in range(0, n, _AT_ONCE):
                part = sums[number, start : start + _AT_ONCE]
                square = square + (part * part).sum()
        return float(square)
