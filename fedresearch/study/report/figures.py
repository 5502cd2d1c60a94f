"""A report's figures: learning curves, sensitivities, heat maps and spreads over clients, told apart in grey print too.

Labels are drawn as they are: ``$`` and ``_`` have no meaning. Figures are as wide as a page's text.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, NullLocator
from numpy.typing import NDArray

from fedresearch.runs.directory import write_whole
from fedresearch.runs.record import larger_is_better
from fedresearch.study.report.load import Column

# More arms than this cannot be told apart; the tables have them all.
MAX_ARMS = 16
MAX_CLIENTS = 100
_WIDTH = 6.3  # inches, of the text on a page
_DPI = 150
# Okabe and Ito, "Color Universal Design", 2008; without its yellow, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1)))
_MARKERS = "os^vDP<>"
_CHARACTER = 0.07  # inches, about the mean width of a character in the labels
_LINE = 0.165  # inches, from one line of labels to the next
_SMALLEST = 4  # points, of numbers that can be read

# Whatever a user's matplotlibrc says. Ticks are made while a figure is drawn, so that this is needed there, too.
_styled = style.context(
    (
        "default",
        {
            "axes.axisbelow": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": _DPI,
            "font.size": 8,
            "figure.titlesize": 9,
            "axes.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "legend.handlelength": 3.5,
            "grid.alpha": 0.3,
            "hatch.linewidth": 0.6,
            "lines.linewidth": 1.2,
            "lines.markersize": 5,
            "pdf.fonttype": 42,
            "text.parse_math": False,
        },
    )
)


@dataclass(frozen=True)
class Curve:
    """An arm's metric over its rounds.

    Parameters
    ----------
    label : str
        The arm.
    x, mean : ndarray
        float64 (rounds,); NaN where unknown.
    low, high : ndarray
        The interval about the mean, float64 (rounds,); NaN where there is none, as of a single run.
    """

    label: str
    x: Column
    mean: Column
    low: Column
    high: Column


@dataclass(frozen=True)
class Line:
    """A metric at the values of a swept key, the other keys being equal.

    Parameters
    ----------
    label : str
        The other keys' values.
    values : ndarray
        Of the swept key, ascending, float64 (points,).
    mean : ndarray
        float64 (points,); NaN where unknown.
    half_width : ndarray
        Of the interval about the mean, float64 (points,); NaN where there is none.
    """

    label: str
    values: Column
    mean: Column
    half_width: Column


@dataclass(frozen=True)
class Spread:
    """How an arm's metric is distributed over the clients.

    Parameters
    ----------
    label : str
        The arm.
    mean, std, p10, worst : float
        Over the clients; ``p10`` is the tenth percentile from the worst, a loss's 90th. NaN where unknown.
    """

    label: str
    mean: float
    std: float
    p10: float
    worst: float


@_styled
def learning_curves(curves: Sequence[Curve], x_label: str, y_label: str, targets: Sequence[float] = ()) -> Figure:
    """Draw the mean of each arm over its rounds, and the band of its interval.

    Parameters
    ----------
    curves : sequence of Curve
        The arms; the first ``MAX_ARMS`` are drawn.
    x_label, y_label : str
        What the axes are; an x axis of bytes has its unit at the numbers.
    targets : sequence of float
        Values of the metric to mark.
    """
    figure, axes = _axes(3.0, x_label, y_label)
    handles: list[Artist] = []
    for number, curve in enumerate(curves[:MAX_ARMS]):
        look = _look(number)
        known = np.isfinite(curve.x) & np.isfinite(curve.mean)
        x, mean, low, high = (column[known] for column in (curve.x, curve.mean, curve.low, curve.high))
        if np.isfinite(low).any():
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0.5)
        # About eight markers a line, each arm's at other rounds.
        step = 1 + len(x) // 8
        handles += axes.plot(x, mean, markevery=(number * step // MAX_ARMS, step), **look)
    is_whole = all(np.all(np.mod(line.get_xdata(), 1) == 0) for line in axes.lines)
    axes.locator_params(axis="x", integer=is_whole, min_n_ticks=1)
    labels = [curve.label for curve in curves[:MAX_ARMS]]
    if targets:
        handles += [axes.axhline(it, color="0.4", linestyle=(0, (2, 2)), linewidth=0.9) for it in targets][:1]
        labels.append(f"target{'s' * (len(targets) > 1)} {', '.join(f'{it:g}' for it in targets)}")
    _within_reach(axes, y_label, [curve.mean for curve in curves[:MAX_ARMS]])
    if "bytes" in x_label:
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    _legend(figure, handles, labels, len(curves))
    return _laid_out(figure)


@_styled
def sensitivity(lines: Sequence[Line], x_label: str, y_label: str) -> Figure:
    """Draw a metric at the values of a swept key; their axis is logarithmic where they span a factor of 20 or more.

    Parameters
    ----------
    lines : sequence of Line
        A line for each value of the other keys; the first ``MAX_ARMS`` are drawn.
    x_label, y_label : str
        The swept key and the metric.
    """
    figure, axes = _axes(3.0, x_label, y_label)
    handles = [
        axes.errorbar(line.values, line.mean, line.half_width, capsize=2.5, elinewidth=0.8, **_look(number))
        for number, line in enumerate(lines[:MAX_ARMS])
    ]
    _within_reach(axes, y_label, [line.mean for line in lines[:MAX_ARMS]])
    values = np.unique(np.concatenate([line.values for line in lines[:MAX_ARMS]]))
    is_log = bool(values[0] > 0 and values[-1] >= 20 * values[0])
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    numbers = [f"{value:g}" for value in values]
    room = _CHARACTER * (_longest(numbers) + 1) / (_WIDTH - 0.8)
    ticks = _apart(np.log(values) if is_log else values, room)
    axes.set_xticks(values[ticks], [numbers[tick] for tick in ticks])
    _legend(figure, handles, [line.label for line in lines[:MAX_ARMS]], len(lines))
    return _laid_out(figure)


@_styled
def heat_map(
    values: NDArray[np.float64],
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    row_key: str,
    col_key: str,
    title: str,
) -> Figure:
    """Draw a number for each pair of two keys' values, as text on its colour; a dash on hatching where there is none.

    Where there are so many columns that the text could not be read, the colours are left.

    Parameters
    ----------
    values : ndarray
        float64 (rows, cols); NaN where unknown.
    row_labels, col_labels : sequence of str
        The keys' values.
    row_key, col_key, title : str
        The keys, and what the numbers are.
    """
    rows = [_wrapped(label, 30) for label in row_labels]
    width = (_WIDTH - 1.2 - _CHARACTER * _longest(rows)) / len(col_labels)
    columns = [_wrapped(label, max(1, int(width / _CHARACTER) - 1)) for label in col_labels]
    turned = _CHARACTER * (_longest(columns) + 1) > width
    columns = [_cut(label, 60) for label in col_labels] if turned else columns
    below = _CHARACTER * _longest(columns) if turned else _LINE * _most_lines(columns)
    height = max(0.6, len(rows) * (_LINE * _most_lines(rows) + 0.12), _CHARACTER * len(row_key))
    title = _wrapped(title, 80)
    figure, axes = _axes(height + below + 0.5 + _LINE * _most_lines([title]), col_key, row_key)
    figure.suptitle(title)
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), columns, rotation=90 if turned else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.patch.set(facecolor="0.93", edgecolor="0.7", hatch="////")
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    texts = {at: f"{value:#.3g}".rstrip(".") if np.isfinite(value) else "–" for at, value in np.ndenumerate(values)}
    size = 8 * min(1, 0.8 * width / (_CHARACTER * _longest(list(texts.values()))))
    for (row, column), text in texts.items() if size >= _SMALLEST else ():
        # Luminance as of ITU-R BT.709.
        luminance = np.dot(image.to_rgba(values[row, column])[:3], (0.2126, 0.7152, 0.0722))
        is_dark = text != "–" and luminance < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if is_dark else "black")
    if np.isfinite(values).any():
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    return _laid_out(figure)


@_styled
def client_spread(spreads: Sequence[Spread], y_label: str) -> Figure:
    """Draw for each arm its mean over the clients, a standard deviation to both sides, and its clients that are worst.

    Parameters
    ----------
    spreads : sequence of Spread
        The arms, from top to bottom; the first ``MAX_ARMS`` are drawn.
    y_label : str
        The metric.
    """
    drawn = spreads[:MAX_ARMS]
    labels = [_wrapped(spread.label, 40) for spread in drawn]
    mean, std, p10, worst = np.array([(s.mean, s.std, s.p10, s.worst) for s in drawn], dtype=float).T
    places = np.arange(len(drawn))
    figure, axes = _axes(0.5 + len(drawn) * (_LINE * _most_lines(labels) + 0.1), y_label, "")
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
    _legend(figure, [*marks, deviation], names, len(spreads))
    return _laid_out(figure)


@_styled
def partition(counts: NDArray[np.int64], title: str) -> Figure:
    """Draw how many samples of each class each client holds, as stacked bars; the first ``MAX_CLIENTS`` clients.

    Parameters
    ----------
    counts : ndarray
        int64 (clients, classes).
    title : str
        Whose partition it is.
    """
    shown = counts[:MAX_CLIENTS]
    figure, axes = _axes(2.6, f"client{f', {len(shown)} of {len(counts)}' * (len(counts) > len(shown))}", "samples")
    title = _wrapped(title, 80)
    figure.set_figheight(figure.get_figheight() + _LINE * (_most_lines([title]) + 1))
    figure.suptitle(title)
    axes.grid(visible=False, axis="x")
    below = np.cumsum(shown, axis=1) - shown
    colours = colormaps["cividis"](np.linspace(0, 1, counts.shape[1]))  # whose lightness tells them apart
    bars = [
        axes.bar(np.arange(len(shown)), held, 0.9, bottom, color=colour, edgecolor="white", linewidth=0.2)
        for held, bottom, colour in zip(shown.T, below.T, colours, strict=True)
    ]
    axes.locator_params(axis="x", integer=True)
    if len(bars) <= MAX_ARMS:
        _legend(figure, bars, [f"class {number}" for number in range(len(bars))], len(bars))
    else:
        scale = ScalarMappable(Normalize(0, len(bars) - 1), "cividis")
        figure.colorbar(scale, ax=axes, pad=0.02, aspect=30, label="class")
    return _laid_out(figure)


def save(figure: Figure, stem: Path) -> bytes:
    """Write a figure as ``stem.png`` and as ``stem.pdf``, each whole or not at all, and return the first.

    Equal figures give equal bytes.

    Raises
    ------
    Unwritable
        If they cannot be written.
    """
    picture = png(figure)
    _write(stem.with_name(f"{stem.name}.png"), picture)
    _write(stem.with_name(f"{stem.name}.pdf"), _saved(figure, "pdf", CreationDate=None))
    return picture


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, of 150 dots an inch."""
    return _saved(figure, "png", Software=None)


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(content))


@_styled
def _saved(figure: Figure, form: str, **metadata: None) -> bytes:
    buffer = io.BytesIO()
    with _boxes_for_glyphs():
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _boxes_for_glyphs() -> Iterator[None]:
    """Let what the font does not have be drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def _laid_out(figure: Figure) -> Figure:
    """Lay a figure out once and for all: a second time would move things, and change the bytes."""
    with _boxes_for_glyphs():
        ConstrainedLayoutEngine().execute(figure)
    figure.set_layout_engine("none")
    return figure


def _axes(height: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_subplot()
    axes.set_xlabel(_wrapped(x_label, 80))
    axes.set_ylabel(_wrapped(y_label, 45))
    axes.grid(visible=True)
    return figure, axes


def _within_reach(axes: Axes, metric: str, means: Sequence[Column]) -> None:
    """Leave out of the axis what no accuracy can be, however wide its interval."""
    known = np.concatenate([mean[np.isfinite(mean)] for mean in means])
    if larger_is_better(metric) and ((known >= 0) & (known <= 1)).all():
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -0.02), min(top, 1.02))


def _look(number: int) -> dict[str, Any]:
    """Return how an arm is drawn; of 16, no two have the same marker and filling, nor the same colour and dashes."""
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "color": colour,
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if number < len(_MARKERS) else "white",
    }


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], num_arms: int) -> None:
    """Put a legend below the axes, in as many columns as there is room for, and make the figure higher by it."""
    labels = [_wrapped(label, 80) for label in labels]
    columns = max(1, int(_WIDTH / (_CHARACTER * _longest(labels) + 0.7)))
    title = f"{MAX_ARMS} of {num_arms} arms" if num_arms > MAX_ARMS else None
    legend = figure.legend(handles, ["?"] * len(handles), loc="outside lower center", ncols=columns, title=title)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # afterwards, for older versions leave out a label that begins with "_"
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _LINE * (rows * _most_lines(labels) + bool(title)))


def _apart(places: Column, room: float) -> list[int]:
    """Return the indices of the places that are that share of their span, or more, from the one before."""
    kept: list[int] = []
    for number, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= room * (places[-1] - places[0]):
            kept.append(number)
    return kept


def _wrapped(label: str, width: int) -> str:
    """Break a label between words; a word that is far too long is cut."""
    words = " ".join(_cut(word, max(40, width)) for word in label.split())
    return textwrap.fill(words, width, break_long_words=False, break_on_hyphens=False)


def _cut(text: str, length: int) -> str:
    """Leave out the middle of a text that is too long."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def _longest(labels: Sequence[str]) -> int:
    """Return the number of characters of the longest line."""
    return max(len(line) for label in labels for line in label.split("\n"))


def _most_lines(labels: Sequence[str]) -> int:
    return max(label.count("\n") + 1 for label in labels)
