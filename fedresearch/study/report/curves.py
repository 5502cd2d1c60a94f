"""What figures and the page draw: a cell's mean curve over its seeds, along an axis."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.runs.comparison import format_value
from fedresearch.runs.files import read_bytes
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.figures import Curve, Line, Spread
from fedresearch.study.report.final import outcome
from fedresearch.study.report.load import Column, Run
from fedresearch.study.report.select import Selection, axis
from fedresearch.study.report.statistics import t_half_widths

_MAX_PARTITION_BYTES = 64_000_000


def drawn(cell: Cell) -> list[Run]:
    """Return a cell's runs whose curves are drawn: the finished ones, or all where none is."""
    begun = [run for run in cell.runs.values() if run.num_rounds]
    return [run for run in begun if run.state == "finished"] or begun


def mean_x(cell: Cell, axis_name: str) -> Column:
    """Return where a cell's drawn runs are after each round that all have, on average."""
    runs = drawn(cell)
    return np.mean([axis(run, axis_name)[: _length(runs)] for run in runs], axis=0)


def mean_curve(cell: Cell, axis_name: str, metric: str) -> Curve:
    """Return the mean over a cell's drawn runs after each round that all have, with its 95 % t-interval.

    NaN where a run has no number, and for the interval of a single run.
    """
    runs = drawn(cell)
    values = np.array([run.column(metric)[: _length(runs)] for run in runs])
    mean, half_widths = values.mean(axis=0), t_half_widths(values)
    return Curve(cell.label, mean_x(cell, axis_name), mean, mean - half_widths, mean + half_widths)


def _length(runs: list[Run]) -> int:
    return min(run.num_rounds for run in runs)


def sensitivity_lines(study: Study, key: str, selected: Selection, tuned: Sequence[str]) -> list[Line]:
    """Return the metric by a numeric key, a line for each combination of the other keys with two values or more."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    apart = study.others([key], tuned)
    for cell in study.cells:
        value = cell.keys.get(key)
        if isinstance(value, int | float):
            others = {study.short(name): format_value(other) for name, other in cell.keys.items() if name in apart}
            label = ", ".join(f"{name}={other}" for name, other in others.items()) or "all runs"
            of = outcome(cell, selected)
            lines.setdefault(label, []).append((float(value), of.mean, of.half_width))
    return [
        Line(label, *(np.array(column) for column in zip(*sorted(points), strict=True)))
        for label, points in lines.items()
        if len(points) > 1
    ]


def numeric_keys(study: Study) -> list[str]:
    """Return the keys with three numbers or more as values."""
    return [
        key
        for key in study.keys
        if len({cell.keys[key] for cell in study.cells if isinstance(cell.keys.get(key), int | float)}) > 2
    ]


def class_counts(run: Run) -> NDArray[np.int64] | None:
    """Return how many samples of each class each client has, int64 (clients, classes); None where that is not kept."""
    try:
        with warnings.catch_warnings(action="error"):  # which is all that an empty file gives
            lines = read_bytes(run.directory / "partition.csv", _MAX_PARTITION_BYTES).decode().splitlines()
            table = np.loadtxt(lines, np.int64, delimiter=",", skiprows=1, ndmin=2)
    except (OSError, ValueError, UserWarning, InputError):
        return None
    return table[:, 4:] if table.shape[1] > 4 else None


def client_spread(cell: Cell, prefix: str) -> Spread | None:
    """Return the clients' accuracies after the last round that has them, each a mean over seeds; None without any."""
    names = [f"{prefix}/accuracy_{part}" for part in ("mean", "std", "p10", "worst")]
    columns = [[run.column(name) for name in names] for run in drawn(cell)]
    last = [[column[np.isfinite(column)][-1:] for column in of_run] for of_run in columns]
    known = [np.concatenate(values) for values in last if all(map(len, values))]
    return Spread(cell.label, *map(float, np.mean(known, axis=0))) if known else None
