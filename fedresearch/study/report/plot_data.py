"""The data of a report's plots: mean curves, sensitivities, spreads over clients, and class counts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.dotted_keys import as_json
from fedresearch.errors import InputError
from fedresearch.runs.client_table import last_evaluation, load_clients
from fedresearch.runs.labels import experiment_label
from fedresearch.runs.pictures import class_shares, confusion_counts
from fedresearch.study.report.arms import Arrangement
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import Column, LoadedRun
from fedresearch.study.report.outcomes import LEFT_OUT, Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import t_half_widths


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
    """Return a cell's runs that have a curve: the finished ones; if there is none, those that may still finish."""
    begun = [run for run in cell.runs.values() if run.num_rounds and run.state not in LEFT_OUT]
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


def seed_curves(cell: Cell, axis: str, metric: str) -> Iterator[tuple[str, Column, Column]]:
    """Yield each of a cell's plotted runs as its replicate, its places on an axis, and its numbers."""
    plotted = plotted_runs(cell)
    for replicate, run in cell.runs.items():
        if run in plotted:
            yield replicate, AXES[axis].progress(run), run.column(metric)


def _curve(cell: Cell, x: Column, values: NDArray[np.float64]) -> Curve:
    """Return the mean of runs' values, ``(runs, points)``, with its 95 % t-interval."""
    mean, half_widths = values.mean(axis=0), t_half_widths(values)
    return Curve(cell.label, x, mean, mean - half_widths, mean + half_widths)


def _num_shared_rows(runs: list[LoadedRun]) -> int:
    return min(len(run.column("round")) for run in runs)


def sensitivity_lines(
    study: Study, key: str, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> list[Line]:
    """Return the selected metric by a numeric key, with a line for each combination of the other keys.

    Combinations with a single value of the key have no line. Lines that are arms have the arms' labels.
    """
    arms: dict[str, set[str]] = {}
    found: dict[str, list[tuple[float, Outcome]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    other_keys = study.other_keys([key], question.tuned)
    for cell in study.cells:
        value = cell.keys.get(key)
        if isinstance(value, int | float):
            setting = {name: cell.keys[name] for name in cell.keys if name in other_keys}
            found.setdefault(as_json(setting), []).append((float(value), outcomes[cell.label]))
            settings[as_json(setting)] = setting
            arms.setdefault(as_json(setting), set()).add(arrangement.arm(cell).label)
    lines = {text: points for text, points in found.items() if len(points) > 1}
    kept = [settings[text] for text in lines]
    told = [name for name in other_keys if len({as_json(setting.get(name)) for setting in kept}) > 1]
    labels = {
        text: experiment_label(
            {name: settings[text][name] for name in told if name in settings[text]}, {}, question.names
        )
        for text in lines
    }
    of_arms = {text: next(iter(arms[text])) for text in lines if len(arms[text]) == 1}
    if len({*of_arms.values()}) == len(lines):
        labels = of_arms
    if len({*labels.values()}) < len(labels):
        labels = {text: study.describe(settings[text]) for text in lines}
    result = []
    for text, points in lines.items():
        points.sort(key=lambda point: point[0])
        values, mean, half_width = np.array([(x, each.mean, each.half_width) for x, each in points]).T
        result.append(Line(labels[text] or "all runs", values, mean, half_width))
    return result


def numeric_keys(study: Study, at_least: int) -> list[str]:
    """Return the keys with some number of numbers, or more, as values."""
    return [
        key
        for key in study.keys
        if len({cell.keys[key] for cell in study.cells if isinstance(cell.keys.get(key), int | float)}) >= at_least
    ]


def confusion(cell: Cell) -> NDArray[np.int64] | None:
    """Return the confusion matrix of a cell's plotted runs together, int64 (true, predicted); None if none has one."""
    counts = _confusions(cell)
    return None if counts is None else counts.sum(axis=0)


def class_accuracies(cell: Cell) -> NDArray[np.float64] | None:
    """Return the accuracy of the final model of each of a cell's plotted runs on the test samples of each class.

    float64 (runs, classes), NaN for a class without samples; None if no run has a confusion matrix.
    """
    counts = _confusions(cell)
    return None if counts is None else np.array([class_shares(table).diagonal() for table in counts])


def _confusions(cell: Cell) -> NDArray[np.int64] | None:
    """Return the confusion matrices of a cell's plotted runs, int64 (runs, true, predicted); None without one size."""
    counts = [table for run in plotted_runs(cell) if (table := confusion_counts(run.directory)) is not None]
    return np.array(counts) if len({table.shape for table in counts}) == 1 else None


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


def client_trajectories(cell: Cell, metric: str) -> tuple[Column, NDArray[np.float64]] | None:
    """Return the rounds in which clients of a cell's first plotted run evaluated, and each client's metric then.

    The numbers are float64 (rounds, clients), NaN where a client did not evaluate. None for fewer than two such rounds.
    """
    try:
        table = load_clients(plotted_runs(cell)[0].directory)
        numbers = table.pivot(index="round", columns="partition_id", values=metric).dropna(how="all")
    except (InputError, KeyError, ValueError):
        return None
    return (numbers.index.to_numpy(float), numbers.to_numpy(float)) if len(numbers) > 1 else None
