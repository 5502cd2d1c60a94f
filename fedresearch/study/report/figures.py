"""Which figures a report has, with their captions."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedresearch.dotted_keys import leaves
from fedresearch.runs.columns import is_share, larger_is_better
from fedresearch.runs.comparison import format_value
from fedresearch.runs.loaded import evaluated_metrics
from fedresearch.study.report import plots
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import LoadedRun
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.plot_data import (
    class_counts,
    client_quantiles,
    client_spread,
    mean_curve,
    numeric_keys,
    plotted_runs,
    sensitivity_lines,
)
from fedresearch.study.report.question import Question

_MAX_PICTURES = 6
# What a partition depends on besides the seeds, along with the keys below the first two.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes")


@dataclass(frozen=True)
class Picture:
    """A figure, and in a sentence what it shows."""

    figure: Figure
    caption: str


def figures(study: Study, question: Question, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, Picture]]:
    """Yield the name and the picture of each figure.

    Parameters
    ----------
    outcomes : mapping
        By cell's label.
    """
    begun = [cell for cell in study.cells if plotted_runs(cell)]
    if begun:
        yield from _curves(begun, question, is_share(question.metric, study.declared))
    yield from _sensitivities(study, question, outcomes)
    grid = question.grid or tuple(key for key in study.keys if key not in question.tuned)
    if len(grid) == 2:
        yield from _heat_maps(study, question, outcomes, *grid)
    yield from _spreads(study, begun)
    yield from _client_quantiles(study, question, begun)
    yield from _partitions(study)


def _client_quantiles(study: Study, question: Question, cells: list[Cell]) -> Iterator[tuple[str, Picture]]:
    scope, _, measure = question.metric.partition("/")
    metric = question.metric if scope == "personal" else f"clients/{measure.partition('_')[0]}"
    curves = [curve for cell in cells if (curve := client_quantiles(cell, metric))]
    if curves:
        shares = is_share(metric, study.declared)
        figure = plots.plot_learning_curves(curves, "% of clients at or below", metric, (), is_share=shares)
        caption = (
            f"{metric} of each client in the last evaluation, clients sorted: mean over seeds, with the 95 % "
            "t-interval as a band."
        )
        yield "clients", Picture(figure, caption)


def _spreads(study: Study, cells: list[Cell]) -> Iterator[tuple[str, Picture]]:
    metrics = dict.fromkeys(name for run in study.runs for name in evaluated_metrics(run.record) if name != "loss")
    for metric in metrics:
        for prefix, models in (("clients", "the global model on clients"), ("personal", "clients' own models")):
            tenth = "p10" if larger_is_better(f"{prefix}/{metric}", study.declared) else "p90"
            spreads = [spread for cell in cells if (spread := client_spread(cell, f"{prefix}/{metric}", tenth))]
            if spreads:
                caption = (
                    f"{metric} of {models} after the last round that has it: mean, standard deviation, "
                    f"{tenth[1:]}th percentile and worst over the clients, each a mean over seeds."
                )
                figure = plots.plot_client_spread(spreads, f"{metric} of {models}")
                yield f"{prefix}_{metric}", Picture(figure, caption[0].upper() + caption[1:])


def _curves(cells: list[Cell], question: Question, shares: bool) -> Iterator[tuple[str, Picture]]:
    for axis in dict.fromkeys((question.x_axis, "bytes")):
        curves = [mean_curve(cell, axis, question.metric) for cell in cells]
        caption = (
            f"{question.metric} over {AXES[axis].label}: mean over the seeds of finished runs, or of all runs if "
            "none is finished, with the 95 % t-interval as a band."
        )
        figure = plots.plot_learning_curves(
            curves, AXES[axis].label, question.metric, question.targets, is_share=shares
        )
        yield f"curves_{axis}", Picture(figure, caption)


def _sensitivities(study: Study, question: Question, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, Picture]]:
    for key in (key for key in numeric_keys(study) if key not in question.tuned):
        lines = sensitivity_lines(study, key, question.tuned, outcomes)
        if any(np.isfinite(line.mean).any() for line in lines):
            caption = f"{question.selection.caption}, by {key}: mean over seeds, with the 95 % t-interval as bars."
            figure = plots.plot_sensitivity(
                lines, key, question.metric, is_share=is_share(question.metric, study.declared)
            )
            yield f"sensitivity_{_file_name(study.short_name(key))}", Picture(figure, caption)


def _file_name(key: str) -> str:
    """Return a key as part of a file's name, with its digest where it is long or has other characters."""
    name = re.sub(r"[^\w.-]", "_", key, flags=re.ASCII)[:80]
    return name if name == key else f"{name}_{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"


def _heat_maps(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], rows: str, cols: str
) -> Iterator[tuple[str, Picture]]:
    """Yield a heat map for each of the first few combinations of the other keys."""
    other_keys = study.other_keys((rows, cols), question.tuned)
    grids: dict[str, dict[tuple[str, str], float]] = {}
    for cell in study.cells:
        if rows in cell.keys and cols in cell.keys:
            label = study.describe({key: value for key, value in cell.keys.items() if key in other_keys})
            place = (format_value(cell.keys[rows]), format_value(cell.keys[cols]))
            grids.setdefault(label, {})[place] = outcomes[cell.label].mean
    for count, (label, grid) in enumerate([*grids.items()][:_MAX_PICTURES], start=1):
        downs, acrosses = (list(dict.fromkeys(place[side] for place in grid)) for side in (0, 1))
        values = np.array([[grid.get((down, across), math.nan) for across in acrosses] for down in downs])
        title = f"{question.metric}{', ' * bool(label)}{label}"
        if np.isfinite(values).any():
            names = study.short_name(rows), study.short_name(cols)
            figure = plots.plot_heat_map(values, downs, acrosses, *names, title)
            setting = f", of {label}" if label else ""
            caption = f"{question.selection.caption}, by {rows} and {cols}{setting}: mean over seeds."
            yield f"heat_map{f'_{count}' if len(grids) > 1 else ''}", Picture(figure, caption)


def _partitions(study: Study) -> Iterator[tuple[str, Picture]]:
    """Yield the first few different partitions, each that of the first seed of a cell."""
    plotted: set[Any] = set()
    for cell in study.cells:
        replicate, run = next(iter(cell.runs.items()))
        digest = run.record.get("partition_sha256")
        counts = class_counts(run) if digest not in plotted and len(plotted) < _MAX_PICTURES else None
        if counts is not None:
            plotted.add(digest)
            title = ", ".join(_partition_settings(study, cell, run, replicate))
            caption = f"Samples of each class on each client: {title}."
            yield f"partition_{len(plotted)}", Picture(plots.plot_partition(counts, title), caption)


def _partition_settings(study: Study, cell: Cell, run: LoadedRun, replicate: str) -> Iterator[str]:
    """Yield what a partition depends on, among what distinguishes cells."""
    for key, value in cell.keys.items():
        if key in _PARTITION or key.startswith(("dataset.", "partitioner.")):
            yield study.describe({key: value})
    if dict(leaves(run.record["config"])).get("strategy.pooled"):
        yield "pooled"
    yield replicate if "=" in replicate else f"seed {replicate}"
