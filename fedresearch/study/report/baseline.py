"""The cell that each cell is compared with."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedresearch.dotted_keys import ABSENT, leaves
from fedresearch.errors import InputError
from fedresearch.runs.comparison import format_value
from fedresearch.study.report.cells import Cell, Study


@dataclass(frozen=True)
class Baseline:
    """What cells are compared with.

    Parameters
    ----------
    text : str
        Such as ``strategy=fedavg``.
    of : mapping
        Label of a cell to the cell that it is compared with; without those that are baselines, or have none.
    warnings : list of str
        Where a cell differs from its baseline in more than the key that was named, or has none.
    """

    text: str
    of: Mapping[str, Cell]
    warnings: Sequence[str]


NO_BASELINE = Baseline("", {}, [])


def baseline(study: Study, text: str, tuned: Sequence[str]) -> Baseline:
    """Find the baseline of every cell: the one that has all its values, but of the key that is named.

    Where there is none, but one cell has the named value at all, it is that one, with a warning.

    Parameters
    ----------
    study : Study
        The cells.
    text : str
        ``KEY=VALUE``.
    tuned : sequence of str
        Keys whose values were chosen for each cell, and need not agree.

    Raises
    ------
    InputError
        If a key does not vary among the cells, or no cell has the value.
    """
    named, is_pair, value = text.partition("=")
    if not named or not is_pair:
        raise InputError(f"--baseline must be KEY=VALUE, got {text}; {_example(study, text)}")
    key = study.named(named)
    text = f"{key}={value}"
    refuse_constant(study, key)
    for name in tuned:  # all cells may have chosen the same
        if not any(_is_set(run.record, name) for cell in study.cells for run in cell.runs.values()):
            refuse_constant(study, name)
    candidates = [cell for cell in study.cells if key in cell.keys and format_value(cell.keys[key]) == value]
    if not candidates:
        values = dict.fromkeys(format_value(cell.keys[key]) for cell in study.cells if key in cell.keys)
        raise InputError(f"no run has {text}; try --baseline {key}={' or '.join(values)}")
    of, warnings = {}, []
    for cell in study.cells:
        if cell in candidates:
            continue
        differing = {one.label: _differing(study, cell, one, {key, *tuned}) for one in candidates}
        equal = [one for one in candidates if not differing[one.label]]
        if len(equal) == 1:
            of[cell.label] = equal[0]
        elif len(candidates) == 1:
            (only,) = candidates
            of[cell.label] = only
            warnings.append(f"{cell.label} differs from its baseline also in {', '.join(differing[only.label])}")
        else:
            several = "several cells" if equal else "no cell"
            warnings.append(f"{cell.label} has no baseline: {several} with {text} and its other values")
    return Baseline(text, of, warnings)


def _example(study: Study, text: str) -> str:
    """Return what to type of the cells at hand: the key that has the text as a value, or is named so, or the first."""
    values = [(key, format_value(cell.keys[key])) for key in study.keys for cell in study.cells if key in cell.keys]
    if not values:
        return "no key varies among these runs"
    likely = [(key, value) for key, value in values if text in (value, key, study.short(key))]
    key, value = (likely or values)[0]
    return f"try --baseline {shlex.quote(f'{key}={value}')}"


def refuse_constant(study: Study, key: str) -> None:
    """Refuse a key that does not tell cells apart.

    Raises
    ------
    InputError
        With those that do.
    """
    if key in study.equal:
        raise InputError(f"{key} always has the values of {study.equal[key]}, which stands for both; name that")
    if key not in study.keys:
        varying = ", ".join(study.keys) or "nothing"
        raise InputError(f"{key} does not vary among these runs; what varies is {varying}")


def _is_set(record: Mapping[str, Any], key: str) -> bool:
    return key in record["choices"] or key in dict(leaves(record["config"]))


def of_option(key: str, group: str) -> bool:
    """Return whether a key is one that a group's option brings; a schedule's are in the optimizer's section."""
    return key.replace("optimizer.schedule.", "schedule.", 1).startswith(f"{group}.")


def _differing(study: Study, cell: Cell, other: Cell, but: set[str]) -> list[str]:
    """Return the keys in which two cells differ; an option that is compared may have keys that the other has not."""
    pairs = {key: (cell.keys.get(key, ABSENT), other.keys.get(key, ABSENT)) for key in study.keys if key not in but}
    return [
        key
        for key, (a, b) in pairs.items()
        if a != b and not (ABSENT in (a, b) and any(of_option(key, name) for name in but))
    ]
