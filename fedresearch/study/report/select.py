"""What number of a run goes into a table: which column, of which round, over which axis."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedresearch.errors import InputError
from fedresearch.runs.record import larger_is_better
from fedresearch.study.report.load import Column, Run


def validation_column(metric: str) -> str:
    """Return the column of the clients' validation data that is of a metric's kind, and of its models."""
    whose = "personal" if metric.startswith("personal/") else "clients"
    return f"{whose}/eval_acc" if larger_is_better(metric) else f"{whose}/eval_loss"


def axis(run: Run, name: str) -> Column:
    """Return where a run was after each round, float64 (rounds,): rounds, or bytes, steps or seconds so far.

    NaN where the run does not tell.
    """
    match name:
        case "bytes":
            return run.column("comm/bytes_up_total") + run.column("comm/bytes_down_total")
        case "steps":
            return np.cumsum(run.column("local/steps"))
        case "seconds":
            return run.column("time/total_s")
    return run.column("round")


@dataclass(frozen=True)
class Selection:
    """A rule that makes one number of a curve.

    Parameters
    ----------
    caption : str
        The rule in words, with the metric's name.
    choose : callable
        Run to number; NaN for a run that has no such round.
    """

    caption: str
    choose: Callable[[Run], float]


def selection(rule: str, metric: str) -> Selection:
    """Return a selection rule by its name.

    Parameters
    ----------
    rule : str
        ``last``, the last round that was evaluated; ``best_val``, the round in which the clients' validation data
        is best (of equal ones the first); ``mean_last:K``, the mean of the last K evaluated rounds, or of all
        where there are fewer; ``best_test``, the best of all rounds, which selects on the data that it reports.
    metric : str
        The column.

    Raises
    ------
    InputError
        If there is no such rule.
    """
    name, _, argument = rule.partition(":")
    best = np.argmax if larger_is_better(metric) else np.argmin
    validation = validation_column(metric)
    # Of the rounds that have the metric, and for best_val the validation data's too.
    rules: dict[str, tuple[str, Callable[[Column, Column], float]]] = {
        "last": (f"{metric} after the last round", lambda values, _: values[-1]),
        "best_val": (
            f"{metric} in the round with the best {validation}",
            lambda values, validated: values[best(validated)],
        ),
        "best_test": (
            f"best on test: {metric} in its own best round, which no one knows without the test data",
            lambda values, _: values[best(values)],
        ),
    }
    if name == "mean_last" and argument.isdecimal() and int(argument):
        caption = f"{metric}, mean of the last {argument} evaluated rounds, or of all where there are fewer"
        rules[rule] = caption, lambda values, _: values[-int(argument) :].mean()
    if rule not in rules:
        raise InputError(f"no selection rule {rule}; try --select last, best_val, mean_last:10 or best_test")
    caption, pick = rules[rule]

    def choose(run: Run) -> float:
        values, validated = run.column(metric), run.column(validation)
        known = np.isfinite(values) & (np.isfinite(validated) if rule == "best_val" else True)
        return float(pick(values[known], validated[known])) if known.any() else np.nan

    return Selection(caption, choose)
