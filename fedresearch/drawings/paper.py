"""The paper on which figures are drawn: look, sizes, labels that fit, legends, and files.

Labels are drawn as they are: ``$`` and ``_`` have no meaning. Figures have the size that they have in print.
"""

import csv
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

# A column of texts, or of numbers as float64 with NaN where there is none.
Data = Mapping[str, Any]
Spec = Mapping[str, Any]

TEXTS = ("panel", "arm", "seed", "row", "col")  # columns of texts
CHARACTER = 0.07  # inches, about the mean width of a character
LINE = 0.165  # inches, from one line of labels to the next
DPI = 150
_MOST_LINES = 6  # of a label


@contextmanager
def look(spec: Spec) -> Iterator[None]:
    """Replace a user's matplotlibrc, and draw characters that the font does not have as boxes without a warning."""
    settings = {
        "axes.axisbelow": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 8,
        "figure.constrained_layout.use": True,
        "figure.dpi": DPI,
        "font.family": spec["font"],
        "font.size": 8,
        "figure.titlesize": 9,
        "figure.labelsize": 8,
        "axes.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "legend.handlelength": 3,
        "grid.alpha": 0.3,
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.6,
        "lines.linewidth": 1.3,
        "lines.markersize": 4.5,
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
    }
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def styled(draw: Callable[[Data, Spec], Figure]) -> Callable[[Data, Spec], Figure]:
    """Let a function draw with this look, and lay the figure out once: a second layout would move things."""

    @wraps(draw)
    def drawn(data: Data, spec: Spec) -> Figure:
        with look(spec):
            figure = draw(data, spec)
            figure.set_layout_engine("none")
        return figure

    return drawn


def saved(figure: Figure, form: str, spec: Spec) -> bytes:
    """Return a figure as ``png`` or ``pdf``. Equal figures give equal bytes."""
    buffer, dpi = io.BytesIO(), figure.dpi
    with look(spec):  # ticks are created while a figure is saved; savefig() would draw twice
        if form == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        else:
            FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
    figure.dpi = dpi
    return buffer.getvalue()


def redraw(draw: Callable[[Data, Spec], Figure], spec: Spec, script: Path) -> None:
    """Draw the CSV beside a script as PNG and PDF beside it."""
    data = read(script.with_name(f"{script.name[:-3]}.csv"))
    for column, names in (("arm", "arms"), ("panel", "panels")):
        unknown = {*data.get(column, ())} - {*spec.get(names, data.get(column, ()))}
        if unknown:
            raise SystemExit(f"SPEC[{names!r}] does not have {sorted(unknown)} of the CSV; rename them in both")
    figure = draw(data, spec)
    for form in ("png", "pdf"):
        script.with_name(f"{script.name[:-3]}.{form}").write_bytes(saved(figure, form, spec))


def read(path: Path) -> Data:
    """Read a CSV. A leading ' of a text is for spreadsheets only."""
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    columns = dict(zip(names, zip(*rows, strict=True), strict=False)) if rows else dict.fromkeys(names, ())
    return {
        name: [text.removeprefix("'") for text in column]
        if name in TEXTS
        else np.array([float(text or "nan") for text in column])
        for name, column in columns.items()
    }


def groups(data: Data, *names: str) -> dict[tuple[str, ...], list[int]]:
    """Return the rows of each combination of some columns' values, in the order of the data."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(zip(*(data[name] for name in names), strict=True)):
        found.setdefault(key, []).append(row)
    return found


def new_axes(spec: Spec, height: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of a height in inches, with one pair of axes."""
    figure = Figure(figsize=(spec["width"], height))
    axes = figure.add_subplot()
    axes.set_xlabel(wrap(x_label, spec["width"] / CHARACTER - 10))
    axes.set_ylabel(wrap(y_label, height / CHARACTER))
    axes.grid(visible=True)
    return figure, axes


def num_rows_and_columns(spec: Spec) -> tuple[int, int]:
    """Return how many panels stand below each other, and side by side."""
    rows = -(-len(spec["panels"]) // (spec.get("columns") or max(1, int(spec["width"] / 1.75))))
    return rows, -(-len(spec["panels"]) // rows)


def new_panels(spec: Spec, height: float = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes for each of ``spec["panels"]``, side by side as far as there is room.

    ``height`` is that of axes, in inches; 0: as goes with their width. ``spec["columns"]``, where it has that, is how
    many stand side by side. ``spec["grid"]``, where it has that, are the labels ``across`` the top and ``down`` the
    right side that the panels have in common, instead of a title for each.
    """
    panels, width = spec["panels"], spec["width"]
    rows, columns = num_rows_and_columns(spec)
    each = width / columns
    labels = spec.get("grid") or {"across": panels, "down": []}
    titles = [wrap(label, each / CHARACTER - 4, breaks_words=True) for label in labels["across"]]
    if height:
        height += 0.35 + LINE * num_lines(titles) * (not labels["down"])
    else:
        height = min(3.0 if len(panels) == 1 else 2.3, 0.62 * each + 0.5) + LINE * (num_lines(titles) - 1)
    figure = Figure(figsize=(width, rows * height + LINE * num_lines(titles) * bool(labels["down"])))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn = [*grid.flat][: len(panels)]
    for axes in [*grid.flat][len(panels) :]:
        axes.remove()
    for axes in drawn:
        axes.grid(visible=True)
    for axes, title in zip(drawn, titles, strict=False):
        axes.set_title(title)
    for axes, label in zip(drawn[columns - 1 :: columns], labels["down"], strict=False):
        look = {"rotation": 270, "ha": "left", "va": "center", "fontsize": 8}
        text = wrap(label, height / CHARACTER - 4, breaks_words=True)
        axes.annotate(text, (1, 0.5), (4, 0), xycoords="axes fraction", textcoords="offset points", **look)
    is_short = len(spec["x_label"]) <= each / CHARACTER - 4
    for axes in drawn[-columns:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(spec["x_label"] if is_short else "")
    if not is_short:
        label = wrap(spec["x_label"], width / CHARACTER - 10)
        figure.supxlabel(label)
        figure.set_figheight(figure.get_figheight() + LINE * num_lines([label]))
    for axes in drawn[::columns]:
        axes.set_ylabel(wrap(spec["y_label"], height / CHARACTER - 4))
    return figure, drawn


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """Add a legend below the axes, with as many columns as fit, and increase the figure's height by it."""
    width = figure.get_figwidth()
    labels = [wrap(label, width / CHARACTER - 10) for label in labels]
    columns = min(len(labels), max(1, int(width / (CHARACTER * num_characters(labels) + 0.7))))
    columns = -(-len(labels) // -(-len(labels) // columns))
    legend = figure.legend(handles, ["?"] * len(handles), loc="outside lower center", ncols=columns, title=title)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # older versions omit a label that begins with "_" when it is given to legend()
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LINE * (rows * num_lines(labels) + bool(title)))


def lay_out(figure: Figure) -> Figure:
    """Place axes and labels."""
    ConstrainedLayoutEngine().execute(figure)
    return figure


def line_style(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's look as matplotlib's keywords of a line."""
    return {
        "color": arm["colour"],
        "linestyle": (0, tuple(arm["dash"])) if arm["dash"] else "-",
        "marker": arm["marker"] or None,
    }


def wrap(label: str, width: float, *, breaks_words: bool = False) -> str:
    """Break a label between words, but not at "="; what is far too long, a word or all of it, is cut.

    ``breaks_words`` is for labels beside which there is another: they are broken at "=" and in words too if need be.
    """
    width = max(10, int(width))
    words = " ".join(cut(word, max(40, width)) for word in label.split())
    for text in re.findall(r"\S+ = \S+", words):
        if len(text) <= width or not breaks_words:
            words = words.replace(text, text.replace(" ", "\u00a0"))
    lines = textwrap.fill(
        words, width, break_long_words=breaks_words, break_on_hyphens=False, max_lines=_MOST_LINES, placeholder="…"
    )
    return lines.replace("\u00a0", " ")


def cut(text: str, length: int) -> str:
    """Leave out the middle of a text that is too long."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def num_characters(labels: Sequence[str]) -> int:
    """Return the number of characters of the longest line."""
    return max(len(line) for label in labels for line in label.split("\n"))


def num_lines(labels: Sequence[str]) -> int:
    """Return the number of lines of the label with most lines."""
    return max(label.count("\n") + 1 for label in labels)


def apart(places: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Return the nearest places, in their order, that are a gap apart and between two bounds."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    pooled: list[list[float]] = []
    for place in places[order] - steps:  # isotonic regression: pool adjacent violators
        pooled.append([place])
        while len(pooled) > 1 and np.mean(pooled[-2]) > np.mean(pooled[-1]):
            pooled[-2:] = [pooled[-2] + pooled[-1]]
    moved = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pooled])
    result = np.empty(len(places))
    result[order] = np.clip(moved, low, max(low, high - steps[-1])) + steps
    return result
