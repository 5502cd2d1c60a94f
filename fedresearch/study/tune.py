"""The command ``fedresearch tune SWEEP_DIR``: the best value of a key for each cell, on validation data."""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedresearch.config import report_error
from fedresearch.config.schema import is_seed
from fedresearch.dotted_keys import ABSENT, as_json
from fedresearch.errors import InputError, printing, readable
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
Choose the best value of a key, of those that a sweep tried, for each cell: for
each combination of the other keys that vary. Judged by the clients' validation
data, as the mean over seeds; the test data is not looked at.
"""
_EPILOG = """\
example:
  fedresearch tune=lr partitioner.alpha=0.1,1
  fedresearch tune outputs/sweep_DIGEST --out rates.json
  fedresearch -m partitioner.alpha=0.1,1 seed=0,1,2 'optimizer.lr=${tuned:rates.json}'
"""

# Short runs may tune long ones: this does not tell a cell, but where nothing else does.
_LENGTH = "federation.num_rounds"
# Beside seeds, what tuning and final runs may rightly differ in: keys, or what they begin with.
_MAY_DIFFER = (
    _LENGTH,
    "federation.evaluate_every",
    "federation.fraction_evaluate",
    "federation.target_accuracy",
    "validation.",
    "hardware.",
    "dataset.path",  # where the same data lie
)


def choose(runs: Sequence[LoadedRun], key: str, rule: str) -> tuple[dict[str, Any], list[str]]:
    """Choose the best value of a key for each cell of the other keys.

    Parameters
    ----------
    runs : sequence of Run
        Those of the sweep, all at their end.
    key : str
        The key to tune, such as ``optimizer.lr``.
    rule : str
        The name of a selection rule, which makes one number of a run's validation curve.

    Returns
    -------
    chosen : dict
        ``key``; ``keys``, which tell the cells; ``fixed``, what else is to be as in these runs; ``selection``, the rule
        in words; ``seeds`` of the runs; ``cells``: of each the ``cell``, the ``value`` chosen, and all that was
        ``tried``, each with its validation metric, null where a run diverged.
    warnings : list of str
        Where the best is the smallest or largest value that was tried, or values were tried on different seeds.

    Raises
    ------
    InputError
        If the rule picks a round, a run is not at its end, the key does not vary, or there is no validation data.
    """
    if rule.startswith("best"):
        raise InputError(
            f"--select {rule} takes the best round of each, which is luck for the most part; try --select last"
        )
    undone = [run for run in runs if run.state not in FINAL]
    if undone:
        raise InputError(
            f"{len(undone)} of {len(runs)} runs are not at their end, {undone[0].directory} is {undone[0].state}; "
            "type the sweep's command again to go on with it"
        )
    found = group_runs(runs)
    refuse_constant(found, key)
    keys = [other for other in found.keys if other != key]
    if _tells_apart(found.cells, [other for other in keys if other != _LENGTH]):
        keys = [other for other in keys if other != _LENGTH]
    without = [cell.label for cell in found.cells if key not in cell.keys]
    if without:
        raise InputError(f"{without[0]} has no {key}; tune the runs that have it")
    groups: dict[str, list[Cell]] = {}
    for cell in found.cells:
        groups.setdefault(as_json([cell.keys.get(other) for other in keys]), []).append(cell)
    # Where all of a cell's clients have models of their own, these are tuned, whatever other cells have.
    metrics = {
        of: validation_column(default_metric([(run, run.columns) for cell in group for run in cell.runs.values()]))
        for of, group in groups.items()
    }
    captions = dict.fromkeys(parse_selection(rule, metric).caption for metric in metrics.values())
    cells: dict[str, list[tuple[Any, float]]] = {}
    seeds: dict[str, dict[str, str]] = {}  # of each cell, to the first value that was tried on them
    for of, group in groups.items():
        choose_of = parse_selection(rule, metrics[of]).choose
        for cell in group:
            values = [choose_of(run) if run.state == "finished" else np.nan for run in cell.runs.values()]
            cells.setdefault(of, []).append((cell.keys[key], float(np.mean(values))))
            seeds.setdefault(of, {}).setdefault(", ".join(cell.runs), format_value(cell.keys[key]))
    if all(np.isnan(score) for tried in cells.values() for _, score in tried):
        listed = " or ".join(dict.fromkeys(metrics.values()))
        raise InputError(f"no run has {listed}; try validation.fraction=0.1 and federation.fraction_evaluate=1")
    entries, warnings = [], []
    for of, tried in cells.items():
        cell_values = json.loads(of)
        label = ", ".join(map(format_value, cell_values)) or "all runs"
        scores = np.array([score for _, score in tried]) * (1 if larger_is_better(metrics[of]) else -1)
        if np.isnan(scores).all():
            raise InputError(f"{label}: every {key} that was tried diverged; try smaller ones")
        value, _ = tried[int(np.nanargmax(scores))]
        numbers = [other for other, _ in tried if type(other) in (int, float)]
        if type(value) in (int, float) and value in (min(numbers), max(numbers)):
            smallest = value == min(numbers)
            warnings.append(
                f"{label}: {key}={format_value(value)} is the {'smallest' if smallest else 'largest'} that was tried; "
                f"try {'smaller' if smallest else 'larger'} ones too"
            )
        if len(seeds[of]) > 1:
            (first, a), (second, b), *_ = seeds[of].items()
            warnings.append(
                f"{label}: {key}={a} was tried on the seeds {first}, {key}={b} on {second}, so luck has a say; "
                "try all on the same"
            )
        measured = [[tried_value, None if np.isnan(score) else score] for tried_value, score in tried]
        entries.append({"cell": cell_values, "value": value, "tried": measured})
    chosen = {
        "key": key,
        "keys": keys,
        "fixed": _fixed(runs),
        "selection": "; ".join(captions),
        "seeds": sorted({run.record["config"]["seed"] for run in runs}),
        "cells": entries,
    }
    return chosen, warnings


def _fixed(runs: Sequence[LoadedRun]) -> dict[str, Any]:
    """Return what all runs agree in, and final runs are to agree with."""
    first, *others = [settings_of(run.record) for run in runs]
    return {
        key: value
        for key, value in first.items()
        if not is_seed(key)
        and not key.startswith(_MAY_DIFFER)
        and all(as_json(other.get(key, ABSENT)) == as_json(value) for other in others)
    }


def _tells_apart(cells: Sequence[Cell], keys: Sequence[str]) -> bool:
    """Return whether some keys are enough to tell how long a cell's runs are."""
    lengths: dict[str, set[Any]] = {}
    for cell in cells:
        lengths.setdefault(as_json([cell.keys.get(key) for key in keys]), set()).add(cell.keys.get(_LENGTH))
    return all(len(of) == 1 for of in lengths.values())


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    parser = ArgumentParser(
        "fedresearch tune",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweeps", metavar="SWEEP_DIR", type=Path, nargs="+", help="a sweep's directory, or a run's")
    parser.add_argument("--key", default="optimizer.lr", help="the key to tune (default: %(default)s)")
    parser.add_argument(
        "--select", default="mean_last:5", metavar="RULE", help="last or mean_last:K (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("tuned.json"), help="the file to write (default: %(default)s)")
    arguments = parser.parse_args(words)
    try:
        chosen, warnings = choose(load(arguments.sweeps), arguments.key, arguments.select)
        text = json.dumps(chosen, indent=2) + "\n"
        write_whole(arguments.out, lambda path: path.write_text(text, encoding="utf-8"))
    except (InputError, OSError) as error:
        if not report_error(readable(error)):
            raise
        sys.exit(1)
    with printing():
        _print(chosen, warnings)
        print(arguments.out)


def _print(chosen: dict[str, Any], warnings: Sequence[str]) -> None:
    """Print what was chosen for each cell, of what was tried."""
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
