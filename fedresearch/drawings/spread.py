"""Each cell's mean over the clients, one standard deviation on both sides, and its worst clients.

Data: ``row, mean, std, tenth, worst``; ``tenth`` is the tenth percentile from the worst.
"""

import numpy as np
from matplotlib.figure import Figure

from fedresearch.drawings.paper import (
    LINE,
    Data,
    Spec,
    add_legend,
    lay_out,
    new_axes,
    num_lines,
    styled,
    wrap,
)


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data from top to bottom.

    ``spec`` has ``x_label``; ``scale`` of the numbers, 100 for per cent; ``limits`` of what they can be; ``title`` of
    the legend; ``width`` and ``font``.
    """
    labels = [wrap(label, 40 if spec["width"] > 4 else 22) for label in data["row"]]
    mean, std, tenth, worst = (spec["scale"] * data[name] for name in ("mean", "std", "tenth", "worst"))
    places = np.arange(len(labels))
    figure, axes = new_axes(spec, 0.5 + len(labels) * (LINE * num_lines(labels) + 0.1), spec["x_label"], "")
    axes.grid(visible=False, axis="y")
    axes.use_sticky_edges = False
    low, high = (np.nan if end is None else spec["scale"] * end for end in spec["limits"])
    left, right = np.fmax(mean - std, low), np.fmin(mean + std, high)
    axes.hlines(places, mean, worst, color="0.5", linewidth=0.8)
    deviation = axes.barh(places, right - left, 0.5, left, color="0.82")
    marks = [
        axes.plot(values, places, marker, color=colour, linestyle="", markersize=size)[0]
        for values, marker, colour, size in (
            (mean, "o", "black", 4.5),
            (tenth, "|", "black", 8),
            (worst, "x", "black", 4.5),
        )
    ]
    axes.set_yticks(places, labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    percentile = "90th" if np.any(worst > mean) else "10th"
    names = ["mean over clients", f"{percentile} percentile", "worst client", "± one standard deviation"]
    add_legend(figure, [*marks, deviation], names, spec["title"])
    return lay_out(figure)
