"""The figures of what single clients and classes have: spreads, trajectories, confusion matrices, partitions."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.dotted_keys import leaves
from fedresearch.drawings import curves, heat_map, spread, trajectories
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.runs.columns import larger_is_better
from fedresearch.runs.labels import experiment_label, without_unit
from fedresearch.runs.loaded import evaluated_metrics
from fedresearch.runs.pictures import class_counts, confusion_picture, partition_picture
from fedresearch.study.report.arms import Arrangement, option_labels
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import LoadedRun
from fedresearch.study.report.looks import (
    MAX_DRAWN,
    MAX_PANELS,
    cell_name,
    drawn_panels,
    excess,
    in_order_of_panels,
    looks,
    numbers,
    page,
)
from fedresearch.study.report.plot_data import (
    class_accuracies,
    client_quantiles,
    client_spread,
    client_trajectories,
    confusion,
)
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import t_half_widths

_MAX_PICTURES = 6
_PANEL_WIDTHS = (1.0, 2.4)  # inches, the least and the most
_FEW_CLASSES = 5  # whose numbers fit in a column of a venue
_MOST_DOWN = 4  # rows of a grid that fits on a page
_MAX_LINES = 30  # clients with a line of their own
_PERCENTILES = (0.1, 0.5, 0.9)
# What a partition depends on besides the seeds, along with the keys below the first two.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes")


def client_figures(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the name and the picture of each figure of clients and classes.

    Parameters
    ----------
    cells : sequence of Cell
        Those that have begun.
    """
    yield from _spreads(study, question, cells, arrangement)
    yield from _client_quantiles(study, question, cells, arrangement)
    yield from _trajectories(study, question, cells, arrangement)
    yield from _class_accuracies(question, cells, arrangement)
    yield from _confusions(question, cells, arrangement)
    yield from _partitions(study, question)


def _spreads(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    metrics = dict.fromkeys(name for run in study.runs for name in evaluated_metrics(run.record) if name != "loss")
    cells = in_order_of_panels(cells, arrangement)
    for metric in metrics:
        for prefix, models in (("clients", "the global model on clients"), ("personal", "clients' own models")):
            column = f"{prefix}/{metric}"
            tenth = "p10" if larger_is_better(column, study.declared) else "p90"
            spreads = [(cell, found) for cell in cells if (found := client_spread(cell, column, tenth))]
            if spreads:
                parts = [
                    {"row": cell_name(cell, arrangement)}
                    | {"mean": found.mean, "std": found.std, "tenth": found.p10, "worst": found.worst}
                    for cell, found in spreads[:MAX_DRAWN]
                ]
                shown = numbers(study, question, column)
                spec = {
                    "x_label": shown["y_label"],
                    "scale": shown["scale"],
                    "limits": shown["limits"],
                    "title": excess(len(spreads)),
                    **page(question),
                }
                caption = (
                    f"{metric} of {models} after the last round that has it: mean, standard deviation, "
                    f"{tenth[1:]}th percentile and worst over the clients, each a mean over seeds."
                )
                data = concatenated(parts, ("row", "mean", "std", "tenth", "worst"))
                yield f"{prefix}_{metric}", Picture(spread, data, spec, caption[0].upper() + caption[1:])


def _client_metric(question: Question) -> str:
    """Return the column of the clients' table that goes with the metric."""
    scope, _, measure = question.metric.partition("/")
    return question.metric if scope == "personal" else f"clients/{measure.partition('_')[0]}"


def _client_quantiles(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    metric = _client_metric(question)
    found = {cell.label: curve for cell in cells if (curve := client_quantiles(cell, metric))}
    panels, arms, drawn, left_out = drawn_panels([cell for cell in cells if cell.label in found], arrangement)
    if not drawn:
        return
    parts = [
        {"panel": arrangement.panel(cell), "arm": arrangement.arm(cell).label, "seed": "", "x": curve.x}
        | {"y": curve.mean, "low": curve.low, "high": curve.high}
        for cell, curve in ((cell, found[cell.label]) for cell in drawn)
    ]
    spec = {
        "panels": panels,
        "arms": arms,
        "x_label": "Clients, sorted (%)",
        "x_unit": "",
        **numbers(study, question, metric),
        "unseen": 0,
        "targets": [],
        **page(question, len(panels)),
    }
    caption = (
        f"{without_unit(spec['y_label'])} of each client in the last evaluation, clients sorted: mean over seeds, with "
        f"the 95 % t-interval as a band.{left_out}"
    )
    data = concatenated(parts, ("panel", "arm", "seed", "x", "y", "low", "high"))
    yield "clients", Picture(curves, data, spec, caption)


def _trajectories(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield each client's metric over the rounds, in the first run of the first few cells with a highlighted arm."""
    metric = _client_metric(question)
    chosen = [cell for cell in in_order_of_panels(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found = [(cell, own) for cell in chosen[:MAX_PANELS] if (own := client_trajectories(cell, metric))]
    if not found:
        return
    parts: list[dict[str, Any]] = []
    for cell, (rounds, values) in found:
        place = {"panel": cell_name(cell, arrangement), "arm": arrangement.arm(cell).label, "x": rounds}
        low, middle, high = np.nanquantile(values, _PERCENTILES, axis=1)
        parts.append(place | {"client": math.nan, "y": middle, "low": low, "high": high})
        for client, line in enumerate(values.T[:_MAX_LINES]):
            parts.append(place | {"client": client, "y": line, "low": math.nan, "high": math.nan})
    panels = [*dict.fromkeys(part["panel"] for part in parts)]
    num_clients = max(values.shape[1] for _, (_, values) in found)
    spec = {
        "panels": panels,
        "arms": looks(arrangement.arms),
        "x_label": AXES["rounds"].label,
        **numbers(study, question, metric),
        **_panels_of_cells(question, [cell for cell, _ in found], arrangement),
    }
    some = f" The first {_MAX_LINES} clients have lines." * (num_clients > _MAX_LINES)
    caption = (
        f"{without_unit(spec['y_label'])} by round in the first run of each cell: thin lines are clients, the thick "
        f"line is their median, and the band has the middle 80 % of them.{some}{_not_drawn(len(chosen), arrangement)}"
    )
    data = concatenated(parts, ("panel", "arm", "client", "x", "y", "low", "high"))
    yield "trajectories", Picture(trajectories, data, spec, caption)


def _panels_of_cells(question: Question, cells: Sequence[Cell], arrangement: Arrangement) -> dict[str, Any]:
    """Return a figure's width and font, and how cells' panels stand in it: as a grid of arms and settings that fits.

    A column of the venue is wide enough for few panels, and no panel is wider than it must be.
    """
    drawn = page(question, len(cells))
    across, down = (
        [*dict.fromkeys(name(cell) for cell in cells)]
        for name in (lambda cell: arrangement.arm(cell).label, arrangement.panel)
    )
    is_whole = len(across) > 1 and len(down) > 1 and len(cells) == len(across) * len(down)
    if is_whole and len(across) < len(down) <= drawn["width"] / _PANEL_WIDTHS[0]:
        across, down = down, across
        cells = [cell for number in range(len(down)) for cell in cells[number :: len(down)]]
    shape = {**drawn, "panels": [cell_name(cell, arrangement) for cell in cells], "columns": None, "grid": None}
    least, most = (len(across) * width for width in _PANEL_WIDTHS)
    if len(across) == 1 or len(down) > _MOST_DOWN or least > drawn["width"]:
        return shape
    column = page(question)["width"]
    width = min(column if least <= column else drawn["width"], most)
    return {
        **shape,
        "width": width,
        "columns": len(across),
        "grid": {"across": across, "down": down} if is_whole else None,
    }


def _not_drawn(num_cells: int, arrangement: Arrangement, most: int = MAX_PANELS) -> str:
    """Return sentences on the cells that a figure leaves out: more than ``most`` of its own, and those of grey arms."""
    grey = [arm.label for arm in arrangement.arms if not arm.is_highlighted]
    excess = f" {num_cells - most} more cells are not drawn." * (num_cells > most)
    return excess + f" Without the arms that are not highlighted: {'; '.join(grey)}." * bool(grey)


def _class_accuracies(
    question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the accuracy on each class of the first few cells with a highlighted arm."""
    chosen = [cell for cell in in_order_of_panels(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found = [(cell, own) for cell in chosen if (own := class_accuracies(cell)) is not None]
    if not found:
        return
    parts = [
        {"row": cell_name(cell, arrangement), "col": str(number), "value": mean, "half_width": half_width}
        for cell, shares in found[:MAX_DRAWN]
        for number, (mean, half_width) in enumerate(zip(shares.mean(axis=0), t_half_widths(shares), strict=True))
    ]
    spec = {"row_label": "", "col_label": "Class", "title": "Test accuracy on each class (%)", "scale": 100}
    caption = "Accuracy of the final models on the test samples of each class: mean over seeds."
    caption += _not_drawn(len(found), arrangement, MAX_DRAWN)
    data = concatenated(parts, ("row", "col", "value", "half_width"))
    width = page(question, len({*data["col"]}) // _FEW_CLASSES + 1)
    yield "class_accuracy", Picture(heat_map, data, {**spec, **width}, caption)


def _confusions(question: Question, cells: Sequence[Cell], arrangement: Arrangement) -> Iterator[tuple[str, Picture]]:
    """Yield the confusion matrices of the first few cells with a highlighted arm, for each number of classes."""
    chosen = [cell for cell in in_order_of_panels(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found: dict[int, list[tuple[Cell, NDArray[np.int64]]]] = {}
    for cell in chosen:
        counts = confusion(cell)
        if counts is not None:
            found.setdefault(len(counts), []).append((cell, counts))
    for num_classes, of_size in found.items():
        drawn = of_size[:MAX_PANELS]
        shape = _panels_of_cells(question, [cell for cell, _ in drawn], arrangement)
        caption = (
            "What the final models take the test samples of each class for, over all seeds together: shares of each "
            f"true class (%), where they round to 1 or more.{_not_drawn(len(of_size), arrangement)}"
        )
        picture = confusion_picture({cell_name(cell, arrangement): counts for cell, counts in drawn}, caption, shape)
        yield f"confusion{f'_{num_classes}' * (len(found) > 1)}", picture


def _partitions(study: Study, question: Question) -> Iterator[tuple[str, Picture]]:
    """Yield the first few different partitions, each that of the first seed of a cell."""
    plotted: set[Any] = set()
    for cell in study.cells:
        replicate, run = next(iter(cell.runs.items()))
        digest = run.record.get("partition_sha256")
        counts = class_counts(run.directory) if digest not in plotted and len(plotted) < _MAX_PICTURES else None
        if counts is not None:
            plotted.add(digest)
            title = ", ".join(_partition_settings(study, question, cell, run, replicate))
            yield f"partition_{len(plotted)}", partition_picture(counts, title, page(question))


def _partition_settings(study: Study, question: Question, cell: Cell, run: LoadedRun, replicate: str) -> Iterator[str]:
    """Yield what a partition depends on, among what distinguishes cells."""
    settings = {
        key: value
        for key, value in cell.keys.items()
        if key in _PARTITION or key.startswith(("dataset.", "partitioner."))
    }
    if settings:
        yield experiment_label(settings, option_labels(cell), question.names)
    if dict(leaves(run.record["config"])).get("strategy.pooled"):
        yield "pooled"
    yield replicate if "=" in replicate else f"seed {replicate}"
