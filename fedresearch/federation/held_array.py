"""A Flower ``Array`` for values that stay in this process."""

import functools
import math
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import ArrayLike, NDArray


class HeldArray(Array):
    """An immutable array that is serialised only on request, such as on the way to another process.

    A Flower ``Array`` is serialised when it is made and deserialised at each reading. For a small tensor this takes a
    hundred times as long as a copy.

    Parameters
    ----------
    values : array-like
        The values.
    copy : bool
        Whether they are copied; if not, nobody may change them.
    """

    def __init__(self, values: ArrayLike, copy: bool = True) -> None:
        held = np.array(values, order="C") if copy else np.asarray(values, order="C")
        held.flags.writeable = False
        self.__dict__.update(dtype=_name(held.dtype), shape=held.shape, stype="numpy.ndarray", held=held)

    held: NDArray[Any]

    @functools.cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised array, as Flower writes it."""
        return Array(self.held).data

    @property
    def num_bytes(self) -> int:
        """The length of ``data``."""
        return num_bytes(self.held.dtype, self.shape)

    def numpy(self) -> NDArray[Any]:
        """Return a copy, as a Flower ``Array`` does."""
        return self.held.copy()

    def deflate(self) -> bytes:
        """Return the serialised form of a plain ``Array``, which the receiver knows."""
        return Array(self.held).deflate()

    def __deepcopy__(self, memo: object) -> "HeldArray":
        return self


_name = functools.cache(str)


@functools.cache
def num_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Return the length of an array as Flower serialises it."""
    buffer = BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.tell() + dtype.itemsize * math.prod(shape)
