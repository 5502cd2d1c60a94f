"""Figures of a run that trackers show, drawn from its directory: the partition, the clients, the confusion matrix."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedresearch.runs.client_table import last_evaluation
from fedresearch.runs.directory import CONFUSION, PARTITION
from fedresearch.runs.record import read_record

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_MAX_CLIENTS = 100  # bars that can still be told apart


def client_values(directory: Path, metrics: Sequence[str]) -> tuple[str, list[float]]:
    """Return the first metric of the clients' last evaluation, by its column, and each client's value.

    The values are none where there is no clients' table, or the metric was not evaluated.
    """
    table = last_evaluation(directory, read_record(directory))
    names = [f"{models}/{metric}" for metric in (*metrics[:1], "loss") for models in ("personal", "clients")]
    name = next((name for name in names if name in table), "")
    return name, [value for value in table.get(name, ()) if value is not None]


def figures(directory: Path, metrics: Sequence[str]) -> dict[str, "NDArray[np.uint8]"]:
    """Return the figures that a run's files have the numbers for, by their names, as pixels ``(height, width, 4)``.

    Parameters
    ----------
    directory : Path
        The run directory.
    metrics : sequence of str
        What is evaluated; the clients' figure shows the first.
    """
    drawn = {}
    partition = _read(directory / PARTITION[0])
    if partition and len(partition[0]) > 4:
        drawn["partition"] = _partition(partition)
    name, values = client_values(directory, metrics)
    if values:
        drawn["clients"] = _histogram(name, values)
    confusion = _read(directory / CONFUSION)
    if confusion:
        drawn["confusion"] = _confusion([[int(count) for count in row[1:]] for row in confusion[1:]])
    return {name: _pixels(figure) for name, figure in drawn.items()}


def _pixels(figure: "Figure") -> "NDArray[np.uint8]":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _read(path: Path) -> list[list[str]]:
    return [*csv.reader(path.read_text(encoding="utf-8").splitlines())] if path.exists() else []


def _axes(width: float, height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _partition(table: list[list[str]]) -> "Figure":
    """Return a heat map of the samples of each class that each client holds."""
    classes, clients = table[0][4:], table[1 : 1 + _MAX_CLIENTS]
    figure, axes = _axes(min(12, 2 + 0.3 * len(clients)), min(12, 1.5 + 0.3 * len(classes)))
    counts = [[int(row[4 + label]) for row in clients] for label in range(len(classes))]
    image = axes.imshow(counts, aspect="auto", cmap="Blues", origin="lower")
    first = f", the first {len(clients)} of {len(table) - 1}" * (len(table) - 1 > len(clients))
    axes.set(xlabel=f"Client{first}", ylabel="Class")
    figure.colorbar(image, label="Samples")
    return figure


def _histogram(name: str, values: Sequence[float]) -> "Figure":
    """Return how many clients have which value."""
    figure, axes = _axes(5, 3.2)
    axes.hist(values, bins=20)
    axes.set(xlabel=f"{name} of a client", ylabel="Clients")
    return figure


def _confusion(counts: list[list[int]]) -> "Figure":
    """Return the share of each class's samples (rows) for which each class (columns) is predicted."""
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in counts]
    size = min(12, 2.5 + 0.3 * len(counts))
    figure, axes = _axes(size + 0.8, size)
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    for true, row in enumerate(shares if len(shares) <= 12 else ()):
        for predicted, share in enumerate(row):
            color = "white" if share > 50 else "black"
            axes.text(predicted, true, f"{share:.0f}", ha="center", va="center", color=color, size=7)
    accuracy = sum(row[label] for label, row in enumerate(counts)) / max(1, sum(map(sum, counts)))
    axes.set(xlabel="Predicted class", ylabel="True class", title=f"Test accuracy {accuracy:.1%}")
    figure.colorbar(image, label="Share of the class (%)")
    return figure
