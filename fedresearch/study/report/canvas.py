"""The page on which plots are drawn: style, size, labels that fit, legends, and files.

Labels are drawn as they are: ``$`` and ``_`` have no meaning. Figures are as wide as a page's text.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedresearch.runs.directory import write_whole

WIDTH = 6.3  # inches, of the text on a page
CHARACTER = 0.07  # inches, about the mean width of a character in the labels
LINE = 0.165  # inches, from one line of labels to the next
_DPI = 150

# Replaces a user's matplotlibrc. Ticks are created while a figure is saved, which needs the style too.
styled = style.context(
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


def new_axes(height: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of a height in inches, with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    axes.set_xlabel(wrap(x_label, 80))
    axes.set_ylabel(wrap(y_label, 45))
    axes.grid(visible=True)
    return figure, axes


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """Add a legend below the axes, with as many columns as fit, and increase the figure's height by it."""
    labels = [wrap(label, 80) for label in labels]
    columns = max(1, int(WIDTH / (CHARACTER * num_characters(labels) + 0.7)))
    legend = figure.legend(handles, ["?"] * len(handles), loc="outside lower center", ncols=columns, title=title)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # older versions omit a label that begins with "_" when it is given to legend()
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LINE * (rows * num_lines(labels) + bool(title)))


def lay_out(figure: Figure) -> Figure:
    """Lay a figure out once: a second layout would move things, and change the bytes of the files."""
    with _boxes_for_missing_glyphs():
        ConstrainedLayoutEngine().execute(figure)
    figure.set_layout_engine("none")
    return figure


def save(figure: Figure, stem: Path) -> bytes:
    """Write a figure as ``stem.png`` and as ``stem.pdf``, each whole or not at all, and return the PNG.

    Equal figures give equal bytes.

    Raises
    ------
    Unwritable
        If a file cannot be written.
    """
    picture = png(figure)
    _write(stem.with_name(f"{stem.name}.png"), picture)
    _write(stem.with_name(f"{stem.name}.pdf"), _saved(figure, "pdf", CreationDate=None))
    return picture


def png(figure: Figure) -> bytes:
    """Return a figure as PNG with 150 dots per inch."""
    return _saved(figure, "png", Software=None)


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(content))


@styled
def _saved(figure: Figure, form: str, **metadata: None) -> bytes:
    buffer = io.BytesIO()
    with _boxes_for_missing_glyphs():
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _boxes_for_missing_glyphs() -> Iterator[None]:
    """Draw characters that the font does not have as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def wrap(label: str, width: int) -> str:
    """Break a label between words; a word that is far too long is cut."""
    words = " ".join(cut(word, max(40, width)) for word in label.split())
    return textwrap.fill(words, width, break_long_words=False, break_on_hyphens=False)


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
