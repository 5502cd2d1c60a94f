"""A figure before it is drawn: its data, and what its drawing must know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedresearch.drawings import paper


@dataclass(frozen=True)
class Picture:
    """A figure before it is drawn.

    Parameters
    ----------
    drawing : module
        One of this folder's.
    data, spec : mapping
        What its ``draw`` takes.
    caption : str
        What it shows.
    """

    drawing: ModuleType
    data: Mapping[str, Any]
    spec: Mapping[str, Any]
    caption: str

    @property
    def figure(self) -> Figure:
        """The figure, drawn anew."""
        drawn: Figure = self.drawing.draw(self.data, self.spec)
        return drawn


def concatenated(parts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return parts as one table; a text or a number of a part stands in all of its rows.

    Parameters
    ----------
    parts : sequence of mapping
        Column to an array, or to one value.
    names : sequence of str
        The columns.
    """
    sizes = [max((len(value) for value in part.values() if isinstance(value, np.ndarray)), default=1) for part in parts]
    data: dict[str, Any] = {}
    for name in names:
        if name in paper.TEXTS:
            data[name] = [text for part, size in zip(parts, sizes, strict=True) for text in [part[name]] * size]
        else:
            columns: list[NDArray[np.float64]] = [
                np.broadcast_to(np.asarray(part[name], float), size) for part, size in zip(parts, sizes, strict=True)
            ]
            data[name] = np.concatenate(columns) if columns else np.empty(0)
    return data
