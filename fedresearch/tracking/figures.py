"""Figures of a run that trackers show, drawn from its directory: the partition, the clients, the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedresearch.runs.client_table import last_evaluation
from fedresearch.runs.columns import is_share
from fedresearch.runs.labels import column_label, declared_labels
from fedresearch.runs.record import read_record

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_PAGE = {"width": 6.3, "font": ["DejaVu Sans"]}


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
    # Imported only now: matplotlib takes a second, and a run has no figure before its end.
    from fedresearch.runs.pictures import class_counts, confusion_counts, confusion_picture, partition_picture

    drawn, record = {}, read_record(directory)
    samples = class_counts(directory)
    if samples is not None:
        label = declared_labels(record["config"]).get("partitioner", "")
        drawn["partition"] = partition_picture(samples, label, _PAGE).figure
    name, values = client_values(directory, metrics)
    if values:
        columns = record.get("columns", {})
        scale = 100 if is_share(name, columns) else 1
        drawn["clients"] = _histogram(column_label(name, columns), [scale * value for value in values])
    counts = confusion_counts(directory)
    if counts is not None:
        title = f"Test accuracy {counts.trace() / max(1, counts.sum()):.1%}, shares of each true class (%)"
        drawn["confusion"] = confusion_picture({title: counts}, "", {**_PAGE, "columns": None, "grid": None}).figure
    return {name: _pixels(figure) for name, figure in drawn.items()}


def _pixels(figure: "Figure") -> "NDArray[np.uint8]":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from fedresearch.drawings.paper import look

    canvas = FigureCanvasAgg(figure)
    with look(_PAGE):
        canvas.draw()
    return np.array(canvas.buffer_rgba())


def _histogram(label: str, values: Sequence[float]) -> "Figure":
    """Return how many clients have which value."""
    from fedresearch.drawings.paper import lay_out, look, new_axes

    with look(_PAGE):
        figure, axes = new_axes(_PAGE, 3.0, label, "Clients")
        axes.hist(values, bins=20)
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="y", integer=True, min_n_ticks=1)
        return lay_out(figure)
