"""The command ``fedresearch tune SWEEP_DIR``: the best value of a key for each cell, by validation data."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedresearch.config.schema import is_seed
from fedresearch.config.verbs import VerbParser, reporting
from fedresearch.dotted_keys import ABSENT, as_json
from fedresearch.errors import InputError, printing
from fedresearch.runs.columns import larger_is_better
from fedresearch.runs.comparison import format_value
from fedresearch.runs.directory import write_whole
from fedresearch.runs.loaded import default_metric
from fedresearch.runs.record import FINAL
from fedresearch.study.report.baseline import refuse_constant
from fedresearch.study.report.cells import Cell, group_runs, settings_of
from fedresearch.study.report.load import LoadedRun, load
from fedresearch.study.report.selection import parse_selection, validation_column

_DESCRIPTION = """\
Choose the best value of a key among those that a sweep tried, for each cell: a
combination of the other keys that vary. Values are judged by the mean over seeds
on the clients' validation data; test data is not used.
"""
_EPILOG = """\
examples:
  fedresearch tune=lr partitioner.alpha=0.1,1
  fedresearch tune outputs/sweep_DIGEST --out rates.json
  fedresearch -m partitioner.alpha=0.1,1 seed=0,1,2 'optimizer.lr=${tuned:rates.json}'
"""

# Short runs may tune long ones: their length identifies a cell only where no other key does.
_LENGTH = "federation.num_rounds"
# Besides seeds, keys or prefixes of keys in which tuning and final runs may differ.
_MAY_DIFFER = (
    _LENGTH,
    "federation.evaluate_initial",
    "federation.evaluate_train",
    "federation.evaluate_every",
    "federation.fraction_evaluate",
    "federation.target_accuracy",
    "validation.",
    "hardware.",
    "dataset.path",  # another copy of the same data
)


@dataclass(frozen=True)
class _Trials:
    """The cells that share all keys but the tuned one.

    Parameters
    ----------
    values : list
        The shared values.
    metric : str
        The validation column that judges them.
    rises : bool
        Whether a larger one is better.
    caption : str
        The selection rule in words.
    scores : list of tuple
        Each tried value with its mean over seeds; NaN if a seed diverged.
    seeds : dict
        Seeds to the first value that was tried on them.
    fixed : dict
        The settings that all their runs share.
    """

    values: list[Any]
    metric: str
    rises: bool
    caption: str
    scores: list[tuple[Any, float]]
    seeds: dict[str, str]
    fixed: dict[str, Any]

    @property
    def label(self) -> str:
        return ", ".join(map(format_value, self.values)) or "all runs"


def choose(runs: Sequence[LoadedRun], key: str, rule: str) -> tuple[dict[str, Any], list[str]]:
    """Choose the best value of a key for each cell of the other keys.

    Parameters
    ----------
    runs : sequence of LoadedRun
        The runs of the sweep, all finished or diverged.
    key : str
        The key to tune, such as ``optimizer.lr``.
    rule : str
        The name of a selection rule, which makes one number of a run's validation curve.

    Returns
    -------
    chosen : dict
        ``key``; ``keys``, which identify the cells; ``fixed``, the settings that final runs must share with these;
        ``selection``, the rule in words; ``seeds`` of the runs; ``cells``: for each the ``cell``, the chosen ``value``,
        all ``tried`` values, each with its validation metric, null if a run diverged, and what is ``fixed`` besides,
        such as an argument of a strategy that only some cells have.
    warnings : list of str
        Cells whose best value is the smallest or largest tried, or whose values were tried on different seeds.

    Raises
    ------
    InputError
        If the rule picks a round, a run is unfinished, the key does not vary, or there is no validation data.
    """
    if rule.startswith("best"):
        raise InputError(f"--select {rule} takes the best round of each run, which is mostly luck; try --select last")
    _refuse_unfinished(runs)
    found = group_runs(runs)
    refuse_constant(found, key)
    without = [cell.label for cell in found.cells if key not in cell.keys]
    if without:
        raise InputError(f"{without[0]} does not have {key}; tune only runs that have it")
    keys = [other for other in found.keys if other != key]
    without_length = [other for other in keys if other != _LENGTH]
    keys = without_length if _determine_length(found.cells, without_length) else keys
    trials = _group_trials(found.cells, key, keys, rule)
    if all(np.isnan(score) for trial in trials for _, score in trial.scores):
        metrics = " or ".join(dict.fromkeys(trial.metric for trial in trials))
        raise InputError(f"no run has {metrics}; try validation.fraction=0.1 and federation.fraction_evaluate=1")
    entries: list[dict[str, Any]] = []
    warnings: list[str] = []
    fixed = _shared_settings(runs)
    for trial in trials:
        value = _best(trial, key)
        warnings += _warnings(trial, key, value)
        tried = [[other, None if np.isnan(score) else score] for other, score in trial.scores]
        own = {name: setting for name, setting in trial.fixed.items() if name not in fixed and name not in keys}
        entries.append({"cell": trial.values, "value": value, "tried": tried, "fixed": own})
    chosen = {
        "key": key,
        "keys": keys,
        "fixed": fixed,
        "selection": "; ".join(dict.fromkeys(trial.caption for trial in trials)),
        "seeds": sorted({run.record["config"]["seed"] for run in runs}),
        "cells": entries,
    }
    return chosen, warnings


def _refuse_unfinished(runs: Sequence[LoadedRun]) -> None:
    unfinished = [run for run in runs if run.state not in FINAL]
    if unfinished:
        first = unfinished[0]
        raise InputError(
            f"{len(unfinished)} of {len(runs)} runs are unfinished: {first.directory} is {first.state}; "
            "type the sweep's command again to continue it"
        )


def _determine_length(cells: Sequence[Cell], keys: Sequence[str]) -> bool:
    """Return whether some keys determine the number of rounds of a cell's runs."""
    lengths: dict[str, set[Any]] = {}
    for cell in cells:
        lengths.setdefault(as_json([cell.keys.get(key) for key in keys]), set()).add(cell.keys.get(_LENGTH))
    return all(len(each) == 1 for each in lengths.values())


def _group_trials(cells: Sequence[Cell], key: str, keys: Sequence[str], rule: str) -> list[_Trials]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(as_json([cell.keys.get(other) for other in keys]), []).append(cell)
    trials = []
    for values, group in groups.items():
        # Where clients' own models are the result of all runs of a group, these models are judged.
        runs = [run for cell in group for run in cell.runs.values()]
        metric = validation_column(default_metric([(run, run.columns) for run in runs]))
        selection = parse_selection(rule, metric)
        scores: list[tuple[Any, float]] = []
        seeds: dict[str, str] = {}
        for cell in group:
            numbers = [selection.choose(run) if run.state == "finished" else np.nan for run in cell.runs.values()]
            scores.append((cell.keys[key], float(np.mean(numbers))))
            seeds.setdefault(", ".join(cell.runs), format_value(cell.keys[key]))
        rises = larger_is_better(metric, runs[0].declared)
        fixed = _shared_settings(runs)
        trials.append(_Trials(json.loads(values), metric, rises, selection.caption, scores, seeds, fixed))
    return trials


def _best(trial: _Trials, key: str) -> Any:
    """Return the tried value with the best score, of equal ones the first."""
    scores = np.array([score for _, score in trial.scores]) * (1 if trial.rises else -1)
    if np.isnan(scores).all():
        raise InputError(f"{trial.label}: runs with every tried {key} diverged; try smaller values")
    return trial.scores[int(np.nanargmax(scores))][0]


def _warnings(trial: _Trials, key: str, best: Any) -> Iterator[str]:
    numbers = [value for value, _ in trial.scores if type(value) in (int, float)]
    if type(best) in (int, float) and best in (min(numbers), max(numbers)):
        end, further = ("smallest", "smaller") if best == min(numbers) else ("largest", "larger")
        yield f"{trial.label}: {key}={format_value(best)} is the {end} value tried; try {further} values too"
    if len(trial.seeds) > 1:
        (first, a), (second, b), *_ = trial.seeds.items()
        yield (
            f"{trial.label}: {key}={a} was tried on seeds {first}, but {key}={b} on seeds {second}, so luck matters; "
            "try all values on the same seeds"
        )


def _shared_settings(runs: Sequence[LoadedRun]) -> dict[str, Any]:
    """Return the settings that some runs share, and that final runs must share too."""
    first, *others = [settings_of(run.record) for run in runs]
    return {
        key: value
        for key, value in first.items()
        if not is_seed(key)
        and not key.startswith(_MAY_DIFFER)
        and all(as_json(other.get(key, ABSENT)) == as_json(value) for other in others)
    }


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    parser = VerbParser("tune", _DESCRIPTION, _EPILOG)
    parser.add_argument("sweeps", metavar="SWEEP_DIR", type=Path, nargs="+", help="a sweep's directory, or a run's")
    parser.add_argument("--key", default="optimizer.lr", help="the key to tune (default: %(default)s)")
    parser.add_argument(
        "--select", default="mean_last:5", metavar="RULE", help="last or mean_last:K (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("tuned.json"), help="the file to write (default: %(default)s)")
    with printing(), reporting():
        arguments = parser.parse_args(words)
        chosen, warnings = choose(load(arguments.sweeps), arguments.key, arguments.select)
        text = json.dumps(chosen, indent=2) + "\n"
        write_whole(arguments.out, lambda path: path.write_text(text, encoding="utf-8"))
        _print(chosen, warnings)
        print(arguments.out)


def _print(chosen: dict[str, Any], warnings: Sequence[str]) -> None:
    """Print the chosen value and all tried values of each cell."""
    for entry in chosen["cells"]:
        tried = ", ".join(
            f"{format_value(value)}: {'diverged' if score is None else f'{score:.4f}'}"
            for value, score in entry["tried"]
        )
        print(
            f"{', '.join(map(format_value, entry['cell'])) or 'all runs'}: "
            f"{chosen['key']}={format_value(entry['value'])} ({tried})"
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
