"""Trees of plain values by dotted key: their leaves, and where two of them differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

Difference = tuple[str, Any, Any]


class _Absent:
    def __repr__(self) -> str:
        return "not set"


# The value of a key that only the other tree has.
ABSENT: Final = _Absent()

_encode = json.JSONEncoder(sort_keys=True, default=repr).encode


def differing(a: Any, b: Any, key: str = "") -> Iterator[Difference]:
    """Yield the dotted key and both values of each leaf that differs, in the order of ``a``, then of ``b``.

    Two leaves are equal if their JSON is equal: 1, 1.0 and true are three values, and NaN equals itself.

    Parameters
    ----------
    a, b : Any
        Nested mappings, whose other values are leaves; ``ABSENT`` if missing.
    key : str
        The dotted key of ``a`` and ``b`` themselves.
    """
    if _is_section(a, b) or _is_section(b, a):
        first, second = ({} if node is ABSENT else node for node in (a, b))
        for name in {**first, **second}:
            dotted = f"{key}.{name}" if key else str(name)
            yield from differing(first.get(name, ABSENT), second.get(name, ABSENT), dotted)
    elif (a is ABSENT) != (b is ABSENT) or as_json(a) != as_json(b):
        yield key, a, b


def _is_section(node: Any, other: Any) -> bool:
    return isinstance(node, Mapping) and (isinstance(other, Mapping) or (other is ABSENT and bool(node)))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf: each value that is not a mapping."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_json(leaf: Any) -> str:
    """Return a leaf as text; equal leaves have equal texts."""
    return _encode(leaf)
