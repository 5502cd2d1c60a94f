"""A metric at the values of a swept key, with a line for each combination of the other keys.

Data: ``arm, x, y, half_width``.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fedresearch.drawings.paper import (
    CHARACTER,
    Data,
    Spec,
    add_legend,
    groups,
    lay_out,
    line_style,
    new_axes,
    num_characters,
    styled,
)


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data, on a logarithmic axis if the values span a factor of 20 or more.

    ``spec`` has ``arms``, by label; ``x_label`` and ``y_label``; ``scale`` of y, 100 for per cent; ``limits`` of what y
    can be; ``title`` of the legend; ``width`` and ``font``.
    """
    figure, axes = new_axes(spec, min(3.0, 0.62 * spec["width"] + 0.3), spec["x_label"], spec["y_label"])
    y, half_width = (spec["scale"] * data[name] for name in ("y", "half_width"))
    low, high = (np.nan if end is None else spec["scale"] * end for end in spec["limits"])
    is_bounded = not ((y < low) | (y > high)).any()
    room = (y - low, high - y) if is_bounded else (half_width, half_width)
    bars = np.array([np.where(half_width > most, most, half_width) for most in room])
    lines = groups(data, "arm")
    handles = [
        axes.errorbar(
            data["x"][lines[arm,]],
            y[lines[arm,]],
            bars[:, lines[arm,]],
            capsize=2.5,
            elinewidth=0.8,
            markerfacecolor=look["colour"] if look["is_highlighted"] else "white",
            **line_style(look),
        )
        for arm, look in spec["arms"].items()
    ]
    if is_bounded:
        bottom, top = axes.get_ylim()
        axes.set_ylim(np.fmax(bottom, low - 0.02 * (high - low)), np.fmin(top, high + 0.02 * (high - low)))
    values = np.unique(data["x"])
    is_log = bool(values[0] > 0 and values[-1] >= 20 * values[0])
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    numbers = [f"{value:g}" for value in values]
    places = np.log(values) if is_log else values
    apart = CHARACTER * (num_characters(numbers) + 1) / (spec["width"] - 0.8) * (places[-1] - places[0])
    ticks: list[int] = []
    for number, place in enumerate(places):
        if not ticks or place - places[ticks[-1]] >= apart:
            ticks.append(number)
    axes.set_xticks(values[ticks], [numbers[tick] for tick in ticks])
    add_legend(figure, handles, [*spec["arms"]], spec["title"])
    return lay_out(figure)
