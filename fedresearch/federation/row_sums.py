"""Sums over rows of numbers: by compiled C++ (``row_sums.cpp``), by NumPy with the same bits, or by torch on a GPU.

The order of a sum in memory depends on nothing but the numbers' places: not on the processor, on threads, or on how
many columns are added at once.
"""

import functools
from collections.abc import Iterator, Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.local.library import KernelUnavailable, library

Numbers = NDArray[Any] | Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")
# The numbers of a row in turn belong to so many sums, whose halves are added at last: a power of two.
_LANES = 32
# Numbers that NumPy adds at once, few enough for a core's cache; and those of a GPU.
_AT_ONCE, _AT_ONCE_ON_GPU = 2**17, 2**26
_POINTER, _SIZE = c_void_p, c_int64
_ROWS = (_POINTER, _SIZE, _SIZE, _SIZE)
_ARGUMENTS = {
    "multiply": (*_ROWS, _POINTER, _POINTER, _POINTER),
    "add_moved": (*_ROWS, _POINTER, _POINTER, _SIZE, _POINTER),
    "add_weighted": (*_ROWS, _POINTER, _SIZE, _POINTER),
}
_TYPES: dict[np.dtype[Any], str] = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
# The compiled functions by name and dtype: none before `compile_in`, and where they cannot be compiled.
_compiled: dict[tuple[str, np.dtype[Any]], Any] = {}


def compile_in(cache_dir: str | Path) -> None:
    """Use compiled code from now on, if this machine can compile it: the same bits, sooner."""
    _compiled.update(_functions(cache_dir))


@functools.cache
def _functions(cache_dir: str | Path) -> dict[tuple[str, np.dtype[Any]], Any]:
    try:
        code = library(_SOURCE, cache_dir, contracts=False)
    except KernelUnavailable:
        return {}
    functions: dict[tuple[str, np.dtype[Any]], Any] = {}
    for name, arguments in _ARGUMENTS.items():
        for dtype, suffix in _TYPES.items():
            function = functions[name, dtype] = getattr(code, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
    return functions


def products(rows: Numbers, origin: Any, vector: Any = None) -> NDArray[np.float64]:
    """Return the product of each row's distance from the origin and a vector, or itself, in double precision.

    Parameters
    ----------
    rows : array or Tensor
        ``(n, columns)``.
    origin : array or Tensor
        ``(columns,)``, of the same dtype.
    vector : array or Tensor, optional
        ``(columns,)``, of double precision.
    """
    if isinstance(rows, Tensor):
        sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for columns, away in _moved_on_gpu(rows, origin):
            sums += torch.linalg.vecdot(away, away if vector is None else vector[columns])
        return sums.cpu().numpy()
    if function := _compiled_for("multiply", rows):
        found = np.empty(len(rows))
        function(*_address(rows), _pointer(origin), None if vector is None else _pointer(vector), _pointer(found))
        return found
    lanes = np.zeros((len(rows), _LANES))
    with np.errstate(invalid="ignore", over="ignore"):
        for columns, moved in _moved(rows, origin):
            if vector is None:
                moved *= moved
            else:
                moved[:, : columns.stop - columns.start] *= vector[columns]
            parts = moved.reshape(len(rows), -1, _LANES)
            parts[:, 0] += lanes
            np.add.reduce(parts, axis=1, out=lanes)
        while half := lanes.shape[1] // 2:
            lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def add_moved(rows: Numbers, origin: Any, factors: NDArray[np.float64], totals: Any) -> None:
    """Add the rows' distances from the origin times factors ``(k, n)`` to totals ``(k, columns)``, k being 1 or 2.

    All but the rows have double precision. A row whose factors are 0 is left out, even if it is not finite.
    """
    if isinstance(rows, Tensor):
        weights, left_out = (torch.as_tensor(each, device=rows.device) for each in (factors, ~factors.any(axis=0)))
        for columns, away in _moved_on_gpu(rows, origin):
            away[left_out] = 0  # zero times infinity is not zero
            totals[:, columns] += weights @ away
    elif function := _compiled_for("add_moved", rows):
        function(*_address(rows), _pointer(origin), _pointer(factors), len(factors), _pointer(totals))
    else:
        for columns, moved in _moved(rows, origin):
            moved[~factors.any(axis=0)] = 0
            for each, total in zip(factors, totals, strict=True):
                weighted = moved * each[:, None]
                weighted[0, : columns.stop - columns.start] += total[columns]
                total[columns] = np.add.reduce(weighted, axis=0)[: columns.stop - columns.start]


def add_weighted(mean: Any, rows: Numbers, shares: Sequence[float]) -> Any:
    """Return a mean plus rows ``(n, columns)`` times their shares, added one after another in their order.

    A mean that is given is overwritten. On a GPU, rows are added there in an order of its own.
    """
    if isinstance(rows, Tensor):
        rows = rows if rows.is_floating_point() else rows.double()
        matmul = torch.backends.cuda.matmul
        allowed, matmul.allow_tf32 = matmul.allow_tf32, False  # a mean is no part of the model's arithmetic
        try:
            weighted_sum = torch.tensor(shares, dtype=rows.dtype, device=rows.device) @ rows
        finally:
            matmul.allow_tf32 = allowed
        return weighted_sum if mean is None else mean + weighted_sum
    dtype = _weighted_dtype(rows.dtype)
    factors = np.array(shares, dtype)
    num_rows, num_columns = rows.shape
    found = np.empty(num_columns, dtype) if mean is None else mean
    if function := _compiled_for("add_weighted", rows):
        function(*_address(rows), _pointer(factors), mean is None, _pointer(found))
        return found
    width = max(2, _AT_ONCE // num_rows)
    for start in range(0, num_columns, width):
        columns = slice(start, start + width)
        weighted = rows[:, columns] * factors[:, None]
        if mean is not None:
            weighted[0] += mean[columns]
        if weighted.shape[1] == 1:  # a reduction would add in pairs
            found[columns] = np.add.accumulate(weighted, axis=0)[-1]
        else:  # from the first row on: from 0 on, -0.0 would become 0.0
            np.add.reduce(weighted, axis=0, initial=None, out=found[columns])
    return found


@functools.cache
def _weighted_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of an array times a float of Python's."""
    return np.result_type(dtype, 0.0)


def _compiled_for(name: str, rows: NDArray[Any]) -> Any:
    """Return the compiled function for rows, if there is one."""
    return _compiled.get((name, rows.dtype)) if rows.strides[1] == rows.itemsize else None


def _address(rows: NDArray[Any]) -> tuple[int, int, int, int]:
    return _pointer(rows), rows.strides[0] // rows.itemsize, *rows.shape


def _pointer(array: Any) -> int:
    address: int = array.ctypes.data
    return address


def _moved(rows: NDArray[Any], origin: Any) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the distances from the origin some columns at a time, in one buffer: whole lanes, the last with zeros."""
    num_rows, num = rows.shape
    width = _LANES * max(2, _AT_ONCE // (num_rows * _LANES))
    buffer = np.empty((num_rows, min(width, -(-num // _LANES) * _LANES)))
    for start in range(0, num, width):
        columns = slice(start, min(start + width, num))
        size = columns.stop - start
        moved = buffer[:, : -(-size // _LANES) * _LANES]
        moved[:, :size] = rows[:, columns]  # faster than a difference of two types
        moved[:, :size] -= origin[columns].astype(np.float64)
        moved[:, size:] = 0
        yield columns, moved


def _moved_on_gpu(rows: Tensor, origin: Any) -> Iterator[tuple[slice, Tensor]]:
    """Yield the distances from the origin some columns at a time."""
    width = max(1, _AT_ONCE_ON_GPU // len(rows))
    for start in range(0, rows.shape[1], width):
        columns = slice(start, min(start + width, rows.shape[1]))
        yield columns, rows[:, columns] - origin[columns].double()
