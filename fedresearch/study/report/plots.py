"""The plots of a report: learning curves, sensitivities, heat maps, spreads over clients and partitions.

Arms differ by more than colour, so that they can be distinguished in grey print.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from numpy.typing import NDArray

from fedresearch.study.report.canvas import (
    CHARACTER,
    LINE,
    WIDTH,
    add_legend,
    cut,
    lay_out,
    new_axes,
    num_characters,
    num_lines,
    styled,
    wrap,
)
from fedresearch.study.report.load import Column
from fedresearch.study.report.plot_data import Curve, Line, Spread

# More lines than this cannot be distinguished in one plot; the tables have them all.
MAX_DRAWN = 16
MAX_CLIENTS = 100
# Okabe and Ito, "Color Universal Design", 2008; without its yellow, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1)))
_MARKERS = "os^vDP<>"
_SMALLEST = 4  # points, of numbers that can be read


@styled
def plot_learning_curves(
    curves: Sequence[Curve], x_label: str, y_label: str, targets: Sequence[float] = (), *, is_share: bool = False
) -> Figure:
    """Draw the mean of each cell over its rounds with its interval as a band.

    Parameters
    ----------
    curves : sequence of Curve
        The cells; the first ``MAX_DRAWN`` are drawn.
    x_label, y_label : str
        The axes' labels; an x axis of bytes has the unit at its numbers.
    targets : sequence of float
        Values of the metric to mark.
    is_share : bool
        Whether the metric lies between 0 and 1.
    """
    figure, axes = new_axes(3.0, x_label, y_label)
    handles: list[Artist] = []
    for number, curve in enumerate(curves[:MAX_DRAWN]):
        style = _style(number)
        known = np.isfinite(curve.x) & np.isfinite(curve.mean)
        x, mean, low, high = (column[known] for column in (curve.x, curve.mean, curve.low, curve.high))
        if np.isfinite(low).any():
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0.5)
        # About eight markers per line, at different rounds for each curve.
        step = 1 + len(x) // 8
        handles += axes.plot(x, mean, markevery=(number * step // MAX_DRAWN, step), **style)
    is_whole = all(np.all(np.mod(line.get_xdata(), 1) == 0) for line in axes.lines)
    axes.locator_params(axis="x", integer=is_whole, min_n_ticks=1)
    labels = [curve.label for curve in curves[:MAX_DRAWN]]
    if targets:
        handles += [axes.axhline(y, color="0.4", linestyle=(0, (2, 2)), linewidth=0.9) for y in targets][:1]
        labels.append(f"target{'s' * (len(targets) > 1)} {', '.join(f'{target:g}' for target in targets)}")
    if is_share:
        _clip_to_fractions(axes, [curve.mean for curve in curves[:MAX_DRAWN]])
    if "bytes" in x_label:
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    add_legend(figure, handles, labels, _excess(len(curves)))
    return lay_out(figure)


@styled
def plot_sensitivity(lines: Sequence[Line], x_label: str, y_label: str, *, is_share: bool = False) -> Figure:
    """Draw a metric at the values of a swept key, on a logarithmic axis if they span a factor of 20 or more.

    Parameters
    ----------
    lines : sequence of Line
        A line for each combination of the other keys; the first ``MAX_DRAWN`` are drawn.
    x_label, y_label : str
        The swept key and the metric.
    is_share : bool
        Whether the metric lies between 0 and 1.
    """
    figure, axes = new_axes(3.0, x_label, y_label)
    handles = [
        axes.errorbar(line.values, line.mean, line.half_width, capsize=2.5, elinewidth=0.8, **_style(number))
        for number, line in enumerate(lines[:MAX_DRAWN])
    ]
    if is_share:
        _clip_to_fractions(axes, [line.mean for line in lines[:MAX_DRAWN]])
    values = np.unique(np.concatenate([line.values for line in lines[:MAX_DRAWN]]))
    is_log = bool(values[0] > 0 and values[-1] >= 20 * values[0])
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    numbers = [f"{value:g}" for value in values]
    share = CHARACTER * (num_characters(numbers) + 1) / (WIDTH - 0.8)
    ticks = _spaced(np.log(values) if is_log else values, share)
    axes.set_xticks(values[ticks], [numbers[tick] for tick in ticks])
    add_legend(figure, handles, [line.label for line in lines[:MAX_DRAWN]], _excess(len(lines)))
    return lay_out(figure)


@styled
def plot_heat_map(
    values: NDArray[np.float64],
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    row_key: str,
    col_key: str,
    title: str,
) -> Figure:
    """Draw the number for each pair of two keys' values as text on a colour; a missing one is a dash on hatching.

    With so many columns that the text would be unreadable, only colours are drawn.

    Parameters
    ----------
    values : ndarray
        float64 (rows, cols); NaN where unknown.
    row_labels, col_labels : sequence of str
        The keys' values.
    row_key, col_key, title : str
        The keys, and the meaning of the numbers.
    """
    rows = [wrap(label, 30) for label in row_labels]
    width = (WIDTH - 1.2 - CHARACTER * num_characters(rows)) / len(col_labels)
    columns = [wrap(label, max(1, int(width / CHARACTER) - 1)) for label in col_labels]
    is_rotated = CHARACTER * (num_characters(columns) + 1) > width
    columns = [cut(label, 60) for label in col_labels] if is_rotated else columns
    below = CHARACTER * num_characters(columns) if is_rotated else LINE * num_lines(columns)
    height = max(0.6, len(rows) * (LINE * num_lines(rows) + 0.12), CHARACTER * len(row_key))
    title = wrap(title, 80)
    figure, axes = new_axes(height + below + 0.5 + LINE * num_lines([title]), col_key, row_key)
    figure.suptitle(title)
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), columns, rotation=90 if is_rotated else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.patch.set(facecolor="0.93", edgecolor="0.7", hatch="////")
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    texts = {
        place: f"{value:#.3g}".rstrip(".") if np.isfinite(value) else "–" for place, value in np.ndenumerate(values)
    }
    size = 8 * min(1, 0.8 * width / (CHARACTER * num_characters(list(texts.values()))))
    for (row, column), text in texts.items() if size >= _SMALLEST else ():
        # Luminance by ITU-R BT.709.
        luminance = np.dot(image.to_rgba(values[row, column])[:3], (0.2126, 0.7152, 0.0722))
        is_dark = text != "–" and luminance < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if is_dark else "black")
    if np.isfinite(values).any():
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    return lay_out(figure)


@styled
def plot_client_spread(spreads: Sequence[Spread], y_label: str) -> Figure:
    """Draw each cell's mean over the clients, one standard deviation on both sides, and its worst clients.

    Parameters
    ----------
    spreads : sequence of Spread
        The cells, from top to bottom; the first ``MAX_DRAWN`` are drawn.
    y_label : str
        The metric.
    """
    drawn = spreads[:MAX_DRAWN]
    labels = [wrap(spread.label, 40) for spread in drawn]
    mean, std, p10, worst = np.array([(s.mean, s.std, s.p10, s.worst) for s in drawn], dtype=float).T
    places = np.arange(len(drawn))
    figure, axes = new_axes(0.5 + len(drawn) * (LINE * num_lines(labels) + 0.1), y_label, "")
    axes.grid(visible=False, axis="y")
    axes.use_sticky_edges = False
    axes.hlines(places, mean, worst, color="0.5", linewidth=0.8)
    deviation = axes.barh(places, 2 * std, 0.5, mean - std, color=_COLOURS[5], alpha=0.5)
    marks = [
        axes.plot(values, places, marker, color=colour, linestyle="", markersize=size)[0]
        for values, marker, colour, size in (
            (mean, "o", _COLOURS[0], 4.5),
            (p10, "|", "black", 8),
            (worst, "X", _COLOURS[1], 5),
        )
    ]
    axes.set_yticks(places, labels)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    tenth = "90th" if np.any(worst > mean) else "10th"
    names = ["mean over clients", f"{tenth} percentile", "worst client", "± one standard deviation"]
    add_legend(figure, [*marks, deviation], names, _excess(len(spreads)))
    return lay_out(figure)


@styled
def plot_partition(counts: NDArray[np.int64], title: str) -> Figure:
    """Draw the samples of each class that each client holds as stacked bars, for the first ``MAX_CLIENTS`` clients.

    Parameters
    ----------
    counts : ndarray
        int64 (clients, classes).
    title : str
        The partition.
    """
    drawn = counts[:MAX_CLIENTS]
    figure, axes = new_axes(2.6, f"client{f', {len(drawn)} of {len(counts)}' * (len(counts) > len(drawn))}", "samples")
    title = wrap(title, 80)
    figure.set_figheight(figure.get_figheight() + LINE * (num_lines([title]) + 1))
    figure.suptitle(title)
    axes.grid(visible=False, axis="x")
    below = np.cumsum(drawn, axis=1) - drawn
    colours = colormaps["cividis"](np.linspace(0, 1, counts.shape[1]))  # whose lightness distinguishes classes
    bars = [
        axes.bar(np.arange(len(drawn)), held, 0.9, bottom, color=colour, edgecolor="white", linewidth=0.2)
        for held, bottom, colour in zip(drawn.T, below.T, colours, strict=True)
    ]
    axes.locator_params(axis="x", integer=True)
    if len(bars) <= MAX_DRAWN:
        add_legend(figure, bars, [f"class {number}" for number in range(len(bars))])
    else:
        scale = ScalarMappable(Normalize(0, len(bars) - 1), "cividis")
        figure.colorbar(scale, ax=axes, pad=0.02, aspect=30, label="class")
    return lay_out(figure)


def _excess(num_all: int) -> str | None:
    """Return the legend's title where not all lines or cells are drawn."""
    return f"{MAX_DRAWN} of {num_all} drawn" if num_all > MAX_DRAWN else None


def _clip_to_fractions(axes: Axes, means: Sequence[Column]) -> None:
    """Limit an axis of accuracies to values that an accuracy can have, however wide the intervals are."""
    known = np.concatenate([mean[np.isfinite(mean)] for mean in means])
    if ((known >= 0) & (known <= 1)).all():
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -0.02), min(top, 1.02))


def _style(number: int) -> dict[str, Any]:
    """Return the style of a line; among 16, both marker with filling and colour with dashes are unique."""
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "color": colour,
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if number < len(_MARKERS) else "white",
    }


def _spaced(places: Column, share: float) -> list[int]:
    """Return the indices of places that are at least a share of their span apart."""
    kept: list[int] = []
    for number, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= share * (places[-1] - places[0]):
            kept.append(number)
    return kept
