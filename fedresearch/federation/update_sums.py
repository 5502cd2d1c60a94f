"""What a round's row says of the clients' updates: sums over them, in double precision."""

import math
from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedresearch.federation.layout import Layout, Rows

# Numbers that are measured at once, and the least columns of them: few for a core's cache, and not too few in a row.
_AT_ONCE, _LEAST_COLUMNS = 2**17, 64
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

    Attributes
    ----------
    norms : list of float
        The norm of each client's update; NaN where it is not finite.
    """

    def __init__(self, layout: Layout, origin: ArrayRecord) -> None:
        before = layout.row(origin)
        self._parts = {dtype: (before[dtype][0, :n], np.zeros((2, n))) for dtype, n in layout.num_parameters.items()}
        self.norms: list[float] = []

    def add(self, rows: Rows, is_finite: NDArray[np.bool_]) -> None:
        """Add the next clients, given their rows, and whether all is finite that they send besides the parameters."""
        squares = np.zeros(len(is_finite))
        with np.errstate(invalid="ignore", over="ignore"):
            for update, _ in self._updates(rows):
                squares += np.vecdot(update, update)
            norms = np.sqrt(squares)
        norms[~(np.isfinite(norms) & is_finite)] = math.nan
        moved = norms > 0
        factors = np.stack([np.divide(1, norms, out=np.zeros_like(norms), where=moved), moved])
        for update, sums in self._updates(rows):
            update[~moved] = 0  # zero times infinity is not zero
            sums += factors @ update
        self.norms += norms.tolist()

    @property
    def cosine(self) -> float | None:
        """The mean cosine between two updates; None for fewer than two."""
        count = sum(norm > 0 for norm in self.norms)
        return (self._square(0) - count) / (count * (count - 1)) if count > 1 else None

    def cosines(self, rows: Rows) -> list[float]:
        """Return the cosine between each update and their mean, given all rows; NaN where one of them is zero."""
        along, norms = np.zeros(len(self.norms)), np.array(self.norms)
        for update, sums in self._updates(rows):
            update[np.isnan(norms)] = 0
            along += update @ sums[1]
        lengths = norms * math.sqrt(self._square(1))
        found: list[float] = np.divide(along, lengths, out=np.full_like(norms, math.nan), where=lengths > 0).tolist()
        return found

    def _square(self, number: int) -> float:
        return float(sum(sums[number].dot(sums[number]) for _, sums in self._parts.values()))

    def _updates(self, rows: Rows) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the updates in double precision and their sums, some columns at a time, in one buffer."""
        for dtype, (before, sums) in self._parts.items():
            num_rows, num = len(rows[dtype]), len(before)
            width = max(_LEAST_COLUMNS, _AT_ONCE // num_rows)
            buffer = np.empty((num_rows, min(width, num)))
            for start in range(0, num, width):
                columns = slice(start, min(start + width, num))
                update = buffer[:, : columns.stop - start]
                np.copyto(update, rows[dtype][:, columns])  # faster than a difference of two types
                update -= before[columns]
                yield update, sums[:, columns]
