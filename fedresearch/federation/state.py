"""What a run must remember to go on: plain values and Flower's records, as JSON and NumPy arrays."""

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
# Attributes of these kinds are what an object was made with, and not what has become of it.
_MADE_WITH = ("function", "method", "builtin_function_or_method", "type", "module", "partial", "Logger")

_GENERATORS = ("Generator", "RandomState", "Random")


class UnsupportedValue(TypeError):
    """A value of a kind that cannot be kept; the text names where it is."""


class _Plain:
    """An object that is all in its attributes."""


class Packer:
    """Takes values apart.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Those of all that was packed, by their paths. One that is there twice is kept once.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._paths: dict[int, str] = {}

    def pack(self, value: Any, path: str) -> Any:
        """Return a value as JSON's, with its arrays apart.

        Whatever is not JSON's own becomes a pair of its kind and its content.

        Parameters
        ----------
        value : object
            None, numbers, text, bytes, NumPy arrays and scalars, tensors, Flower's records, and lists, tuples, sets and
            dicts of them.
        path : str
            What to call it.

        Raises
        ------
        UnsupportedValue
            If there is anything else in it.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is bytes:
            return ["bytes", value.hex()]
        for kind, of in _ARRAYS.items():
            if isinstance(value, of):
                return [kind, self._put(value, path)]
        kind = type(value).__name__
        if kind == "dict" or kind in _RECORDS:
            items = [[self.pack(key, path), self.pack(each, f"{path}/{key}")] for key, each in value.items()]
            return [kind, items]
        if kind in _SEQUENCES:
            return [kind, [self.pack(each, f"{path}/{index}") for index, each in enumerate(value)]]
        instead = " (draw from the global generators instead, which are seeded for each call)" * (kind in _GENERATORS)
        raise UnsupportedValue(f"{_dotted(path)} is a {kind}{instead}")

    def pack_object(self, owner: object, path: str) -> dict[str, Any]:
        """Return all of an object's attributes, packed, and those of the objects among them, but for functions.

        Raises
        ------
        UnsupportedValue
            If an attribute cannot be kept.
        """
        packed = {}
        for name, value in vars(owner).items():
            if _is_part(value):
                packed[name] = self.pack_object(value, f"{path}/{name}")
            elif type(value).__name__ not in _MADE_WITH:
                packed[name] = self.pack(value, f"{path}/{name}")
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
        self.arrays[known] = array  # held, so that no other takes its id
        return known


def unpack(packed: Any, arrays: Arrays) -> Any:
    """Return a value that was packed."""
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
    """Give an object, made afresh, the attributes that another of its kind had."""
    for name, value in packed.items():
        if isinstance(value, dict):
            unpack_object(value, arrays, getattr(owner, name))
        else:
            setattr(owner, name, unpack(value, arrays))


def _is_part(value: Any) -> bool:
    """Return whether a value is a part of a strategy: another strategy, or an object of a class of its own."""
    package = type(value).__module__.partition(".")[0]
    if isinstance(value, Strategy):
        return True
    kind = type(value)
    # What is of a class of its own may have more to it than its attributes: random.Random, OrderedDict, __slots__.
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
