"""The state from which a run resumes: plain values and Flower's records, as JSON and NumPy arrays."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from fedresearch.federation.held_array import HeldArray
from fedresearch.federation.records import view

Arrays = Mapping[str, NDArray[Any]]

_RECORDS: dict[str, Any] = {kind.__name__: kind for kind in (ArrayRecord, MetricRecord, ConfigRecord, RecordDict)}
_SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
_ARRAYS = {"Array": Array, "Tensor": Tensor, "scalar": np.generic, "array": np.ndarray}
_READ: dict[str, Any] = {
    "Array": HeldArray,
    "Tensor": from_numpy,
    "scalar": lambda array: array[()],
    "array": np.asarray,
}
# Attributes of these kinds are an object's arguments and not its state.
_MADE_WITH = ("function", "method", "builtin_function_or_method", "type", "module", "partial", "Logger")

_GENERATORS = ("Generator", "RandomState", "Random")


class UnsupportedValue(TypeError):
    """A value of a type that a checkpoint cannot hold; the message contains its path."""


class _Plain:
    """An object whose attributes are its whole state."""


class Packer:
    """Separates values into JSON and arrays.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The arrays of all packed values, by their paths. An array that occurs twice is kept once.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._paths: dict[int, str] = {}
        self._open: list[object] = []

    def pack(self, value: Any, path: str) -> Any:
        """Return a value as JSON, and put its arrays into ``arrays``.

        A value of a type that JSON does not have becomes a pair of its type and its content.

        Parameters
        ----------
        value : object
            None, numbers, text, bytes, NumPy arrays and scalars, tensors, Flower's records, and lists, tuples, sets and
            dicts of them.
        path : str
            The value's path.

        Raises
        ------
        UnsupportedValue
            If the value contains an object of another type.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is bytes:
            return ["bytes", value.hex()]
        for kind, array_type in _ARRAYS.items():
            if isinstance(value, array_type):
                return [kind, self._put(value, path)]
        kind = type(value).__name__
        if kind == "dict" or kind in _RECORDS:
            items = [[self.pack(key, path), self.pack(each, f"{path}/{key}")] for key, each in value.items()]
            return [kind, items]
        if kind in _SEQUENCES:
            return [kind, [self.pack(each, f"{path}/{index}") for index, each in enumerate(value)]]
        hint = " (draw from the global generators instead, which are seeded for each call)" * (kind in _GENERATORS)
        raise UnsupportedValue(f"{_dotted(path)} is a {kind}{hint}")

    def pack_object(self, owner: object, path: str) -> dict[str, Any]:
        """Return an object's packed attributes, and those of its parts, without functions.

        Raises
        ------
        UnsupportedValue
            If an attribute has an unsupported type, or a part holds what it is a part of.
        """
        if any(owner is outer for outer in self._open):
            raise UnsupportedValue(f"{_dotted(path)} is an object of which it is a part")
        self._open.append(owner)
        packed = {}
        for name, value in vars(owner).items():
            if _is_part(value):
                packed[name] = self.pack_object(value, f"{path}/{name}")
            elif type(value).__name__ not in _MADE_WITH:
                packed[name] = self.pack(value, f"{path}/{name}")
        self._open.pop()
        return packed

    def _put(self, value: Any, path: str) -> str:
        if isinstance(value, Array):
            array = view(value)
        elif isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
        else:
            array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise UnsupportedValue(f"{_dotted(path)} is an array of {array.dtype}")
        known = self._paths.setdefault(id(array), path)
        self.arrays[known] = array  # a reference, so that no other array gets its id
        return known


def unpack(packed: Any, arrays: Arrays) -> Any:
    """Return the value of a packed one."""
    if not isinstance(packed, list):
        return packed
    kind, content = packed
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](unpack(each, arrays) for each in content)
    if kind == "dict" or kind in _RECORDS:
        items = {unpack(key, arrays): unpack(each, arrays) for key, each in content}
        return _RECORDS.get(kind, dict)(items)
    return _READ[kind](arrays[content])


def unpack_object(packed: Mapping[str, Any], arrays: Arrays, owner: object) -> None:
    """Set the packed attributes on a new object of the same type."""
    for name, value in packed.items():
        if isinstance(value, dict):
            unpack_object(value, arrays, getattr(owner, name))
        else:
            setattr(owner, name, unpack(value, arrays))


def _is_part(value: Any) -> bool:
    """Return whether a value is a part of a strategy: another strategy, or an object of the strategy's own code."""
    package = type(value).__module__.partition(".")[0]
    if isinstance(value, Strategy):
        return True
    kind = type(value)
    # Some objects have a state beside their attributes: random.Random, OrderedDict, those with __slots__.
    all_in_attributes = (
        kind.__basicsize__ <= _Plain.__basicsize__
        and not kind.__itemsize__
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )
    return (
        hasattr(value, "__dict__")
        and all_in_attributes
        and package not in ("builtins", "flwr", "functools", "numpy", "torch")
        and not isinstance(value, Array | Enum | type)
        and not callable(value)
    )


def _dotted(path: str) -> str:
    return path.replace("/", ".")
