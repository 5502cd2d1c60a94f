"""The data of a report's plots: mean curves, sensitivities, spreads over clients, and class counts."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.runs.client_table import last_evaluation
from fedresearch.runs.files import read_bytes
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import Column, LoadedRun
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.statistics import t_half_widths

_MAX_PARTITION_BYTES = 64_000_000


@dataclass(frozen=True)
class Curve:
    """A cell's metric over its rounds.

    Parameters
    ----------
    label : str
        The cell.
    x, mean : ndarray
        float64 (rounds,); NaN where unknown.
    low, high : ndarray
        The interval about the mean, float64 (rounds,); NaN without an interval, as for a single run.
    """

    label: str
    x: Column
    mean: Column
    low: Column
    high: Column


@dataclass(frozen=True)
class Line:
    """A metric at the values of a swept key, with the other keys equal.

    Parameters
    ----------
    label : str
        The other keys' values.
    values : ndarray
        Values of the swept key, ascending, float64 (points,).
    mean : ndarray
        float64 (points,); NaN where unknown.
    half_width : ndarray
        Half the interval about the mean, float64 (points,); NaN without an interval.
    """

    label: str
    values: Column
    mean: Column
    half_width: Column


@dataclass(frozen=True)
class Spread:
    """The distribution of a cell's metric over the clients.

    Parameters
    ----------
    label : str
        The cell.
    mean, std, p10, worst : float
        Over the clients; ``p10`` is the tenth percentile from the worst, for a loss the 90th. NaN where unknown.
    """

    label: str
    mean: float
    std: float
    p10: float
    worst: float


def plotted_runs(cell: Cell) -> list[LoadedRun]:
    """Return a cell's runs that have a curve: the finished ones, or all if none is finished."""
    begun = [run for run in cell.runs.values() if run.num_rounds]
    return [run for run in begun if run.state == "finished"] or begun


def mean_progress(cell: Cell, axis: str) -> Column:
    """Return the mean place of a cell's plotted runs on an axis, after each round that all have."""
    runs = plotted_runs(cell)
    return np.mean([AXES[axis].progress(run)[: _num_shared_rows(runs)] for run in runs], axis=0)


def mean_curve(cell: Cell, axis: str, metric: str) -> Curve:
    """Return the mean over a cell's plotted runs after each round that all have, with its 95 % t-interval.

    NaN where a run has no number, and for the interval of a single run.
    """
    runs = plotted_runs(cell)
    values = np.array([run.column(metric)[: _num_shared_rows(runs)] for run in runs])
    return _curve(cell, mean_progress(cell, axis), values)


def _curve(cell: Cell, x: Column, values: NDArray[np.float64]) -> Curve:
    """Return the mean of runs' values, ``(runs, points)``, with its 95 % t-interval."""
    mean, half_widths = values.mean(axis=0), t_half_widths(values)
    return Curve(cell.label, x, mean, mean - half_widths, mean + half_widths)


def _num_shared_rows(runs: list[LoadedRun]) -> int:
    return min(len(run.column("round")) for run in runs)


def sensitivity_lines(study: Study, key: str, tuned: Sequence[str], outcomes: Mapping[str, Outcome]) -> list[Line]:
    """Return the selected metric by a numeric key, with a line for each combination of the other keys.

    Combinations with a single value of the key have no line.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    other_keys = study.other_keys([key], tuned)
    for cell in study.cells:
        value = cell.keys.get(key)
        if isinstance(value, int | float):
            label = study.describe({name: cell.keys[name] for name in cell.keys if name in other_keys}) or "all runs"
            outcome = outcomes[cell.label]
            lines.setdefault(label, []).append((float(value), outcome.mean, outcome.half_width))
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


def class_counts(run: LoadedRun) -> NDArray[np.int64] | None:
    """Return each client's number of samples of each class, int64 (clients, classes); None if it is not recorded."""
    try:
        with warnings.catch_warnings(action="error"):  # NumPy only warns of an empty file
            lines = read_bytes(run.directory / "partition.csv", _MAX_PARTITION_BYTES).decode().splitlines()
            table = np.loadtxt(lines, np.int64, delimiter=",", skiprows=1, ndmin=2)
    except (OSError, ValueError, UserWarning, InputError):
        return None
    return table[:, 4:] if table.shape[1] > 4 else None


def client_spread(cell: Cell, metric: str, tenth: str) -> Spread | None:
    """Return the spread of a metric over clients after the last round that has it, a mean over seeds; None without any.

    ``tenth`` is ``p10`` or ``p90``, the tenth percentile from the worst.
    """
    names = [f"{metric}_{part}" for part in ("mean", "std", tenth, "worst")]
    columns = [[run.column(name) for name in names] for run in plotted_runs(cell)]
    last = [[column[np.isfinite(column)][-1:] for column in of_run] for of_run in columns]
    known = [np.concatenate(values) for values in last if all(map(len, values))]
    return Spread(cell.label, *map(float, np.mean(known, axis=0))) if known else None


def client_quantiles(cell: Cell, metric: str) -> Curve | None:
    """Return a metric of the clients that evaluated last, from the smallest to the largest: its mean over seeds.

    None where no run has it in its clients' table.
    """
    shares, quantiles = np.linspace(0, 1, 101), []
    for run in plotted_runs(cell):
        try:
            values = np.array(last_evaluation(run.directory, run.record).get(metric, []), np.float64)
        except (InputError, ValueError, TypeError):
            continue
        if np.isfinite(values).any():
            quantiles.append(np.quantile(values[np.isfinite(values)], shares))
    return _curve(cell, 100 * shares, np.array(quantiles)) if quantiles else None
