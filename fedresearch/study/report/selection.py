"""The rules that make one number of a run's curve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedresearch.errors import InputError
from fedresearch.runs.columns import larger_is_better
from fedresearch.study.report.load import Column, LoadedRun


def validation_column(metric: str) -> str:
    """Return the column of the clients' validation data that measures the same, on the same models, as a metric."""
    scope, _, measure = metric.partition("/")
    models = "personal" if scope == "personal" else "clients"
    return f"{models}/{measure}" if scope in ("eval", "clients", "personal") else f"{models}/loss"


@dataclass(frozen=True)
class Selection:
    """A rule that makes one number of a curve.

    Parameters
    ----------
    caption : str
        The rule in words, with the metric's name.
    choose : callable
        Run to number; NaN for a run without such a round.
    """

    caption: str
    choose: Callable[[LoadedRun], float]


def parse_selection(rule: str, metric: str, label: str = "") -> Selection:
    """Return a selection rule by its name.

    Parameters
    ----------
    rule : str
        ``last``, the last evaluated round; ``best_val``, the round that is best on the clients' validation data (the
        first of equals); ``mean_last:K``, the mean of the last K evaluated rounds, or of all where there are fewer;
        ``best_test``, the best of all rounds, which selects on the data that it reports.
    metric : str
        The column.
    label : str
        What the caption calls it; "" for its name.

    Raises
    ------
    InputError
        If no rule has this name.
    """
    name, _, argument = rule.partition(":")
    label, validation = label or metric, validation_column(metric)
    # The values are those of rounds that have the metric and, for best_val, the validation data's too: their score.
    rules: dict[str, tuple[str, Callable[[Column, Column], float]]] = {
        "last": (f"{label} after the last round", lambda values, _: values[-1]),
        "best_val": (
            f"{label} in the round with the best {validation}",
            lambda values, scores: values[scores.argmax()],
        ),
        "best_test": (
            f"best on test: {label} in its best round, which is unknown without the test data",
            lambda values, scores: values[scores.argmax()],
        ),
    }
    if name == "mean_last" and argument.isdecimal() and int(argument):
        caption = f"{label}, mean of the last {argument} evaluated rounds, or of all where there are fewer"
        rules[rule] = caption, lambda values, _: values[-int(argument) :].mean()
    if rule not in rules:
        raise InputError(f"unknown selection rule {rule}; try --select last, best_val, mean_last:10 or best_test")
    caption, pick = rules[rule]

    def choose(run: LoadedRun) -> float:
        judge = validation if rule == "best_val" else metric
        values, scores = run.column(metric), run.column(judge) * (1 if larger_is_better(judge, run.declared) else -1)
        known = np.isfinite(values) & np.isfinite(scores) & (run.column("round") > 0)  # the initial model is no round's
        return float(pick(values[known], scores[known])) if known.any() else np.nan

    return Selection(caption, choose)
