"""A number for each pair of two keys' values, as text on a colour; a missing one is a dash on hatching.

Data: ``row, col, value, half_width``; an interval is written where there is room.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedresearch.drawings.paper import (
    CHARACTER,
    LINE,
    Data,
    Spec,
    cut,
    lay_out,
    new_axes,
    num_characters,
    num_lines,
    styled,
    wrap,
)

_SHORT = 3  # characters of labels that are left out rather than rotated


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data, with fewer digits where there are many columns, and none where they would be unreadable.

    ``spec`` has ``row_label`` and ``col_label``, the keys; ``title``; ``scale`` of the numbers, 100 for per cent;
    ``width`` and ``font``.
    """
    row_labels, col_labels = ([*dict.fromkeys(data[name])] for name in ("row", "col"))
    values, half_widths = np.full((2, len(row_labels), len(col_labels)), np.nan)
    for row, col, *numbers in zip(data["row"], data["col"], data["value"], data["half_width"], strict=True):
        place = row_labels.index(row), col_labels.index(col)
        values[place], half_widths[place] = (spec["scale"] * number for number in numbers)
    rows = [wrap(label, 30) for label in row_labels]
    width = (spec["width"] - 1.2 - CHARACTER * num_characters(rows)) / len(col_labels)
    columns = [wrap(label, max(1, int(width / CHARACTER) - 1)) for label in col_labels]
    longest = num_characters(columns)
    is_rotated = longest > _SHORT and CHARACTER * (longest + 1) > width
    columns = [cut(label, 60) for label in col_labels] if is_rotated else columns
    every = math.ceil((0.8 * LINE if is_rotated else CHARACTER * (longest + 0.4)) / width)  # columns with a label
    below = CHARACTER * num_characters(columns) if is_rotated else LINE * num_lines(columns)
    height = max(0.6, len(rows) * (LINE * num_lines(rows) + 0.12), CHARACTER * len(spec["row_label"]))
    title = wrap(spec["title"], spec["width"] / CHARACTER - 10)
    height += below + 0.5 + LINE * num_lines([title])
    figure, axes = new_axes(spec, height, spec["col_label"], spec["row_label"])
    figure.suptitle(title)
    axes.grid(visible=False)
    axes.set_xticks(range(0, len(columns), every), columns[::every], rotation=90 if is_rotated else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.patch.set(facecolor="0.93", edgecolor="0.7", hatch="////")
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    is_share, none = spec["scale"] == 100, np.full(values.shape, np.nan)
    form = ".1f" if is_share else "#.3g"
    for precision, intervals, least in (
        (form, half_widths, 5.5),
        (form, none, 6),
        (".0f" if is_share else form, none, 4.5),
    ):
        texts, size = _texts(values, intervals, precision, width)
        if size >= least:
            break
    for (row, column), text in texts.items() if size >= least else ():
        # Luminance by ITU-R BT.709.
        luminance = np.dot(image.to_rgba(values[row, column])[:3], (0.2126, 0.7152, 0.0722))
        is_dark = text != "–" and luminance < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if is_dark else "black")
    if np.isfinite(values).any():
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    return lay_out(figure)


def _texts(
    values: NDArray[np.float64], half_widths: NDArray[np.float64], form: str, width: float
) -> tuple[dict[tuple[int, ...], str], float]:
    """Return the text at each place, and the size in points at which all fit in columns of a width in inches."""
    texts = {
        place: f"{_number(value, form)} ± {_number(half_width, form)}"
        if np.isfinite(half_width)
        else _number(value, form)
        for (place, value), half_width in zip(np.ndenumerate(values), half_widths.flat, strict=True)
    }
    return texts, 8 * min(1, 0.8 * width / (CHARACTER * num_characters([*texts.values()])))


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else "0" if value == 0 else f"{value:{form}}".rstrip(".")
