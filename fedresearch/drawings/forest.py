"""Differences to a baseline with their intervals, a panel for each setting.

Data: ``panel, arm, difference, half_width, n``.
"""

import numpy as np
from matplotlib.figure import Figure

from fedresearch.drawings.paper import CHARACTER, LINE, Data, Spec, lay_out, num_lines, styled, wrap


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data.

    ``spec`` has ``panels``; ``arms``, by label; ``x_label``; ``scale``, 100 for per cent; ``width`` and ``font``.
    """
    panels, width = spec["panels"], spec["width"]
    names = [wrap(arm, 28) for arm in spec["arms"]]
    columns = min(len(panels), max(1, int((width - 1) / 1.5)))
    rows = -(-len(panels) // columns)
    title_lines = num_lines([wrap(panel, width / columns / CHARACTER - 6) for panel in panels])
    height = rows * (len(names) * (LINE * num_lines(names) + 0.06) + 0.25 + LINE * title_lines) + 0.4
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in [*grid.flat][len(panels) :]:
        axes.remove()
    difference, half_width = (spec["scale"] * data[name] for name in ("difference", "half_width"))
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_title(wrap(panel, width / columns / CHARACTER - 6))
        axes.grid(visible=True, axis="x")
        axes.axvline(0, color="0.4", linewidth=0.9)
        for row in (row for row, its in enumerate(data["panel"]) if its == panel):
            look = spec["arms"][data["arm"][row]]
            axes.errorbar(
                difference[row],
                [*spec["arms"]].index(data["arm"][row]),
                xerr=half_width[row] if np.isfinite(half_width[row]) else None,
                color=look["colour"],
                marker=look["marker"] or "o",
                capsize=2.5,
                elinewidth=1.2,
            )
    for axes in [*grid.flat][: len(panels)][-columns:]:
        axes.tick_params(labelbottom=True)
    grid.flat[0].set_yticks(range(len(names)), names)
    grid.flat[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(wrap(spec["x_label"], width / CHARACTER - 10))
    return lay_out(figure)
