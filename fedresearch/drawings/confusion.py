"""Confusion matrices, a panel for each: what models take the samples of each class for, darker for larger shares.

Data: ``panel, true, predicted, share``; all panels have the same number of classes.
"""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedresearch.drawings.paper import (
    CHARACTER,
    LINE,
    Data,
    Spec,
    groups,
    lay_out,
    new_panels,
    num_rows_and_columns,
    styled,
)

_SMALLEST = 4  # points, of numbers that can be read
_DIGIT = 0.64  # width of a digit by its size
_LARGEST = 4.0  # inches, of a matrix


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data; only colours, where there are so many classes that the numbers would be unreadable.

    The colours go with the root of the share, so that rare mistakes are seen. ``spec`` has ``panels``; how many
    ``columns`` of them, None for as many as fit; their common labels as a ``grid``, or None; ``x_label``, ``y_label``
    and ``colour_label``; ``width`` and ``font``.
    """
    num_classes, (num_rows, columns) = int(data["true"].max()) + 1, num_rows_and_columns(spec)
    width = min(_LARGEST, (spec["width"] - 0.3 - LINE * bool(spec["grid"])) / columns - 0.06)
    figure, panels = new_panels(spec, width)
    digit = 0.92 * 72 * width / num_classes / _DIGIT  # points of a digit that fills a cell
    num_ticks = min(10, int(width / CHARACTER / (len(str(num_classes)) - 0.5)))
    for (panel,), rows in groups(data, "panel").items():
        axes = panels[spec["panels"].index(panel)]
        shares = np.full((num_classes, num_classes), np.nan)
        shares[data["true"][rows].astype(int), data["predicted"][rows].astype(int)] = 100 * data["share"][rows]
        image = axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
        for true, predicted in np.argwhere(shares > 0.5) if digit / 2 >= _SMALLEST else ():
            share, text = shares[true, predicted], f"{shares[true, predicted]:.0f}"
            size, colour = min(8, digit / max(2, len(text))), "white" if share > 40 else "black"
            axes.text(predicted, true, text, ha="center", va="center", fontsize=size, color=colour)
        axes.grid(visible=False)
        axes.spines[["top", "right"]].set_visible(True)
        axes.tick_params(length=0, labelsize=6.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(num_ticks, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if digit / 2 < _SMALLEST:
        figure.colorbar(image, ax=panels, label=spec["colour_label"], aspect=30, pad=0.02)
    lay_out(figure)
    # The layout makes no room for labels beside axes with an aspect of their own: make the figure as high as needs be.
    place, height = panels[0].get_position(), figure.get_figheight()
    side = min(_LARGEST, place.width * spec["width"])
    figure.set_figheight(height + num_rows * (side - place.height * height))
    lay_out(figure)
    for axes in panels:
        axes.set_aspect("equal")
    return figure
