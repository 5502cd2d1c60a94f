"""The cell that each cell is compared with."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedresearch.config.options import group_of
from fedresearch.dotted_keys import ABSENT
from fedresearch.errors import InputError
from fedresearch.runs.comparison import format_value
from fedresearch.study.report.cells import Cell, Study


@dataclass(frozen=True)
class Baseline:
    """What cells are compared with.

    Parameters
    ----------
    text : str
        Such as ``strategy=fedavg``; "" for no baseline.
    partners : mapping
        Label of a cell to the cell that it is compared with. Baselines themselves and cells without one are left out.
    warnings : list of str
        Cells that have no baseline, or differ from theirs in more than the named key.
    """

    text: str
    partners: Mapping[str, Cell]
    warnings: Sequence[str]

    def includes(self, cell: Cell) -> bool:
        """Return whether some cell is compared with this one."""
        return any(cell is partner for partner in self.partners.values())


NO_BASELINE = Baseline("", {}, [])


def find_baseline(study: Study, text: str, tuned: Sequence[str]) -> Baseline:
    """Find the baseline of each cell: the cell that has the named value, and else the same values.

    Where no cell matches, and only one cell has the named value, that one is taken with a warning.

    Parameters
    ----------
    study : Study
        The cells.
    text : str
        ``KEY=VALUE``.
    tuned : sequence of str
        Keys whose values were chosen for each cell, and may differ.

    Raises
    ------
    InputError
        If a key does not vary among the cells, or no cell has the value.
    """
    named, is_pair, value = text.partition("=")
    if not named or not is_pair:
        raise InputError(f"--baseline must be KEY=VALUE, got {text}; {_example(study, text)}")
    key = study.full_name(named)
    text = f"{key}={value}"
    refuse_constant(study, key)
    candidates = [cell for cell in study.cells if key in cell.keys and format_value(cell.keys[key]) == value]
    if not candidates:
        values = dict.fromkeys(format_value(cell.keys[key]) for cell in study.cells if key in cell.keys)
        raise InputError(f"no run has {text}; try --baseline {key}={' or '.join(values)}")
    partners, warnings = {}, []
    for cell in study.cells:
        if cell in candidates:
            continue
        differing = {other.label: _differing_keys(study, cell, other, {key, *tuned}) for other in candidates}
        matching = [other for other in candidates if not differing[other.label]]
        if len(matching) == 1:
            partners[cell.label] = matching[0]
        elif len(candidates) == 1:
            (only,) = candidates
            partners[cell.label] = only
            warnings.append(
                f"{study.short_label(cell)} also differs from its baseline in {', '.join(differing[only.label])}"
            )
        else:
            found = "several cells have" if matching else "no cell has"
            warnings.append(f"{study.short_label(cell)} has no baseline: {found} {text} and the same other values")
    return Baseline(text, partners, warnings)


def _example(study: Study, text: str) -> str:
    """Return what to type: the key that is named like the text, or has it as a value, else the first key."""
    values = [(key, format_value(cell.keys[key])) for key in study.keys for cell in study.cells if key in cell.keys]
    if not values:
        return "no key varies among these runs"
    likely = [(key, value) for key, value in values if text in (value, key, study.short_name(key))]
    key, value = (likely or values)[0]
    return f"try --baseline {shlex.quote(f'{key}={value}')}"


def refuse_constant(study: Study, key: str) -> None:
    """Refuse a key that does not distinguish cells.

    Raises
    ------
    InputError
        If the key is not among the study's keys.
    """
    if key in study.equal:
        raise InputError(f"{key} equals {study.equal[key]} in every run; use {study.equal[key]}")
    if not study.keys:
        raise InputError(
            f"{key} does not vary among these runs, and no other key does; "
            f"sweep it first, as with fedresearch -m {shlex.quote(f'{key}=VALUE,VALUE')}"
        )
    if key not in study.keys:
        raise InputError(f"{key} does not vary among these runs; varying keys: {', '.join(study.keys)}")


def belongs_to_option(key: str, group: str) -> bool:
    """Return whether a key is one of a group's options, and not the option itself."""
    return key != group and group_of(key) == group


def _differing_keys(study: Study, cell: Cell, other: Cell, compared: set[str]) -> list[str]:
    """Return the keys in which two cells differ, without the compared ones and keys that only one option has."""
    pairs = {
        key: (cell.keys.get(key, ABSENT), other.keys.get(key, ABSENT)) for key in study.keys if key not in compared
    }
    return [
        key
        for key, (a, b) in pairs.items()
        if a != b and not (ABSENT in (a, b) and any(belongs_to_option(key, name) for name in compared))
    ]
