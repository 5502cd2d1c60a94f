"""All that a report says of runs, before it is written."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError
from fedresearch.runs.comparison import format_value
from fedresearch.runs.loaded import default_metric
from fedresearch.runs.record import larger_is_better
from fedresearch.study.report import figures
from fedresearch.study.report.baseline import NO_BASELINE, baseline, refuse_constant
from fedresearch.study.report.cells import Cell, Study, study
from fedresearch.study.report.curves import (
    class_counts,
    client_spread,
    drawn,
    mean_curve,
    numeric_keys,
    sensitivity_lines,
)
from fedresearch.study.report.final import final_table, marked, middle_table, outcome, pivot
from fedresearch.study.report.guard import counted, fairness
from fedresearch.study.report.load import Run
from fedresearch.study.report.published import published_table
from fedresearch.study.report.select import Selection, selection
from fedresearch.study.report.statistics import told_duration
from fedresearch.study.report.tables import Entry, Table, measured, number
from fedresearch.study.report.targets import AXES, target_table, to_target

AXIS_LABELS = {
    "rounds": "rounds",
    "bytes": "bytes communicated in training",
    "steps": "local steps",
    "seconds": "seconds",
}
_MAX_PICTURES = 6
# Beside the seeds, what a partition depends on; of the keys below these, too.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes")


@dataclass(frozen=True)
class Picture:
    """A figure, and in a sentence what it shows."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Parameters
    ----------
    title : str
        What it is on.
    warnings, notes : list of str
        What a reader must know before the numbers.
    tables : list of Table
        In their order.
    figures : dict
        Name of the file to the figure and its caption.
    study : Study
        The cells.
    selected : Selection
        The rule by which a run has one number.
    metric : str
        What the report is about.
    targets : list of float
        Values of the metric to reach.
    """

    title: str
    warnings: Sequence[str]
    notes: Sequence[str]
    tables: Sequence[Table]
    figures: Mapping[str, Picture]
    study: Study
    selected: Selection
    metric: str
    targets: Sequence[float]


def report(
    runs: Sequence[Run],
    *,
    select: str = "last",
    metric: str | None = None,
    targets: Sequence[float] = (),
    against: str = "",
    tuned: Sequence[str] = (),
    x: str = "rounds",
    rows: str | None = None,
    cols: str | None = None,
) -> Report:
    """Make a report of runs.

    Parameters
    ----------
    runs : sequence of Run
        In any state.
    select : str
        The selection rule's name.
    metric : str, optional
        A column of ``metrics.jsonl``; None: the first that any run has of those that are usual.
    targets : sequence of float
        Values of the metric to reach.
    against : str
        The baseline, ``KEY=VALUE``; "" for none.
    tuned : sequence of str
        Keys whose values were chosen for each cell, and need not agree with the baseline's.
    x : str
        The axis of the curves and of speed-ups: rounds, bytes, steps or seconds.
    rows, cols : str, optional
        The keys of a table, and of a heat map, with one down and one across.

    Raises
    ------
    InputError
        If no run has the metric, or a key does not vary.
    """
    metric = metric or default_metric([(run, run.columns) for run in runs])
    if not any(metric in run.columns for run in runs):
        columns = sorted({name for run in runs for name in run.columns if "/" in name})
        damaged = [run.error for run in runs if run.state == "damaged"]
        if damaged and not columns:
            raise InputError(f"no run can be read: {damaged[0]}")
        raise InputError(f"no run has {metric}; they have {', '.join(columns) or 'no round yet'}")
    most = max(np.nanmax(run.column(metric), initial=-np.inf) for run in runs)
    for target in targets:
        if larger_is_better(metric) and most <= 1 < target:
            raise InputError(f"no {metric} can be {format_value(target)}, the largest is 1; try --targets 0.9")
    selected = selection(select, metric)
    found = study(runs)
    rows, cols = (key and found.named(key) for key in (rows, cols))
    tuned = [found.named(key) for key in tuned]
    for key in filter(None, (rows, cols)):
        refuse_constant(found, key)
    if rows and rows == cols:
        raise InputError(f"--rows and --cols are both {rows}; name two keys")
    if rows and cols and not any({rows, cols} <= cell.keys.keys() for cell in found.cells):
        raise InputError(f"no run has both {rows} and {cols}")
    compared = baseline(found, against, tuned) if against else NO_BASELINE
    fair = fairness(found, compared, metric)
    final = final_table(found, selected, metric, compared, fair.marks)
    tables = [
        published_table(found, fair.marks),
        final,
        middle_table(found, selected, metric, compared, tuned),
        *(target_table(found, metric, target, x, compared, fair.marks) for target in targets),
    ]
    if rows and cols:
        tables += _pivots(found, selected, metric, targets, rows, cols, tuned, fair.marks)
    told = [*(f"Warning: {text}" for text in fair.warnings), *fair.legend]
    tables = [table and Table(**{**vars(table), "notes": [*table.notes, *told]}) for table in tables]
    numbers = (sum(len(cell.runs) for cell in found.cells), len(found.cells))
    title = f"{metric} of {counted(numbers[0], 'run')} in {counted(numbers[1], 'cell')}"
    return Report(
        title=title,
        warnings=fair.warnings,
        notes=[*fair.notes, *fair.legend],
        tables=[table for table in tables if table],
        figures=dict(_figures(found, selected, metric, targets, x, rows, cols, tuned)),
        study=found,
        selected=selected,
        metric=metric,
        targets=targets,
    )


def _pivots(
    found: Study,
    selected: Selection,
    metric: str,
    targets: Sequence[float],
    rows: str,
    cols: str,
    tuned: Sequence[str],
    marks: Mapping[str, str],
) -> Iterator[Table]:
    others = found.others((rows, cols), tuned)

    def final(cell: Cell) -> Entry:
        of = outcome(cell, selected)
        return Entry(marked(measured(of.mean, of.half_width), cell, marks), number(of.mean))

    caption = f"{selected.caption}: mean ± half the 95 % t-interval over seeds."
    yield pivot(found, rows, cols, others, final, "final_grid", f"Final performance by {rows} and {cols}", caption)
    for target in targets:

        def rounds(cell: Cell, target: float = target) -> Entry:
            taken = to_target(cell, metric, target, "rounds")
            return Entry(marked(told_duration(taken, AXES["rounds"]), cell, marks), number(taken.median))

        told = format_value(target)
        caption = f"Rounds until {metric} first reaches {told}, median over seeds (range)."
        yield pivot(found, rows, cols, others, rounds, f"target_{told}_grid", f"Rounds to {told}", caption)


def _figures(
    found: Study,
    selected: Selection,
    metric: str,
    targets: Sequence[float],
    x: str,
    rows: str | None,
    cols: str | None,
    tuned: Sequence[str],
) -> Iterator[tuple[str, Picture]]:
    begun = [cell for cell in found.cells if drawn(cell)]
    for axis_name in dict.fromkeys((x, "bytes")):
        curves = [mean_curve(cell, axis_name, metric) for cell in begun]
        if curves:
            caption = (
                f"{metric} over {AXIS_LABELS[axis_name]}: mean over the seeds of the finished runs, or of all where "
                "none is, with the 95 % t-interval as a band."
            )
            figure = figures.learning_curves(curves, AXIS_LABELS[axis_name], metric, targets)
            yield f"curves_{axis_name}", Picture(figure, caption)
    for key in (key for key in numeric_keys(found) if key not in tuned):
        lines = sensitivity_lines(found, key, selected, tuned)
        if any(np.isfinite(line.mean).any() for line in lines):
            caption = f"{selected.caption}, by {key}: mean over seeds, with the 95 % t-interval as bars."
            yield (
                f"sensitivity_{_file_name(found.short(key))}",
                Picture(figures.sensitivity(lines, key, metric), caption),
            )
    grid = [rows, cols] if rows and cols else [key for key in found.keys if key not in tuned]
    if len(grid) == 2:
        down, across = grid
        yield from _heat_maps(found, selected, metric, down, across, tuned)
    for prefix, whose in (("clients", "the global model on clients"), ("personal", "clients' own models")):
        spreads = [spread for cell in begun if (spread := client_spread(cell, prefix))]
        if spreads:
            caption = (
                f"Accuracy of {whose} after the last round that has it: mean, standard deviation, 10th percentile and "
                "worst over the clients, each a mean over seeds."
            )
            figure = figures.client_spread(spreads, f"accuracy of {whose}")
            yield f"{prefix}_accuracy", Picture(figure, caption)
    yield from _partitions(found)


def _file_name(key: str) -> str:
    """Return a key as part of a file's name: of a long one, or one with other characters, its digest too."""
    name = re.sub(r"[^\w.-]", "_", key, flags=re.ASCII)[:80]
    return name if name == key else f"{name}_{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"


def _heat_maps(
    found: Study, selected: Selection, metric: str, rows: str, cols: str, tuned: Sequence[str]
) -> Iterator[tuple[str, Picture]]:
    """Yield a heat map for each combination of the other keys, the first few."""
    apart = found.others((rows, cols), tuned)
    grids: dict[str, dict[tuple[str, str], float]] = {}
    for cell in found.cells:
        if rows in cell.keys and cols in cell.keys:
            others = {key: value for key, value in cell.keys.items() if key in apart}
            label = ", ".join(f"{found.short(key)}={format_value(value)}" for key, value in others.items())
            at = (format_value(cell.keys[rows]), format_value(cell.keys[cols]))
            grids.setdefault(label, {})[at] = outcome(cell, selected).mean
    for count, (label, grid) in enumerate([*grids.items()][:_MAX_PICTURES], start=1):
        downs, acrosses = (list(dict.fromkeys(at[side] for at in grid)) for side in (0, 1))
        values = np.array([[grid.get((down, across), math.nan) for across in acrosses] for down in downs])
        title = f"{metric}{', ' * bool(label)}{label}"
        if np.isfinite(values).any():
            figure = figures.heat_map(values, downs, acrosses, found.short(rows), found.short(cols), title)
            caption = f"{selected.caption}, by {rows} and {cols}{f', of {label}' if label else ''}: mean over seeds."
            yield f"heat_map{f'_{count}' if len(grids) > 1 else ''}", Picture(figure, caption)


def _partitions(found: Study) -> Iterator[tuple[str, Picture]]:
    """Yield the partitions of the first few cells that differ in theirs, each as of the cell's first seed."""
    drawn_ones: set[Any] = set()
    for cell in found.cells:
        replicate, run = next(iter(cell.runs.items()))
        digest = run.record.get("partition_sha256")
        counts = class_counts(run) if digest not in drawn_ones and len(drawn_ones) < _MAX_PICTURES else None
        if counts is not None:
            drawn_ones.add(digest)
            title = ", ".join(_of_partition(found, cell, run, replicate))
            caption = f"How many samples of each class each client holds: {title}."
            yield f"partition_{len(drawn_ones)}", Picture(figures.partition(counts, title), caption)


def _of_partition(found: Study, cell: Cell, run: Run, replicate: str) -> Iterator[str]:
    """Yield what a partition depends on, of what tells cells apart."""
    for key, value in cell.keys.items():
        if key in _PARTITION or key.startswith(("dataset.", "partitioner.")):
            yield f"{found.short(key)}={format_value(value)}"
    if dict(leaves(run.record["config"])).get("strategy.pooled"):
        yield "pooled"
    yield replicate if "=" in replicate else f"seed {replicate}"
