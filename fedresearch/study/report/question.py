"""What a report is asked, checked against the runs that it is about."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np

from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError, printable
from fedresearch.runs.columns import is_share
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names
from fedresearch.runs.loaded import default_metric
from fedresearch.study.report.baseline import NO_BASELINE, Baseline, find_baseline, refuse_constant
from fedresearch.study.report.cells import Study
from fedresearch.study.report.selection import Selection, parse_selection


@dataclass(frozen=True)
class Question:
    """What a report is asked about a study. All keys are full names.

    Parameters
    ----------
    metric : str
        A column of ``metrics.jsonl``.
    selection : Selection
        The rule that gives each run one number.
    targets : sequence of float
        Values of the metric to reach.
    baseline : Baseline
        What cells are compared with.
    tuned : sequence of str
        Keys whose values were chosen for each cell, and may differ from the baseline's.
    x_axis : str
        A key of ``AXES``, for curves and speed-ups.
    grid : tuple of sequence of str, optional
        The keys down and those across, for tables and a heat map; None: arms down and panels across.
    facet, arms : sequence of str
        The keys of which each value has a panel, and those that are compared in it; empty: chosen by rule.
    highlight : sequence of str
        Labels of arms, or parts of them; empty: the best.
    names : mapping
        What to call keys, columns and values, by ``KEY``, ``COLUMN`` or ``KEY=VALUE``.
    style : str
        The venue whose columns figures fit in, a key of ``STYLES``; "" for a page.
    """

    metric: str
    selection: Selection
    targets: Sequence[float] = ()
    baseline: Baseline = NO_BASELINE
    tuned: Sequence[str] = ()
    x_axis: str = "rounds"
    grid: tuple[Sequence[str], Sequence[str]] | None = None
    facet: Sequence[str] = ()
    arms: Sequence[str] = ()
    highlight: Sequence[str] = ()
    names: Names = field(default_factory=dict)
    style: str = ""


def pose_question(
    study: Study,
    *,
    select: str = "last",
    metric: str | None = None,
    targets: Sequence[float] = (),
    baseline: str = "",
    tuned: Sequence[str] = (),
    x_axis: str = "rounds",
    grid: tuple[Sequence[str], Sequence[str]] | None = None,
    facet: Sequence[str] = (),
    arms: Sequence[str] = (),
    highlight: Sequence[str] = (),
    labels: Sequence[str] = (),
    style: str = "",
) -> Question:
    """Return the question that was typed, in which keys may have their short names.

    Parameters
    ----------
    study : Study
        The cells.
    select : str
        The name of a selection rule.
    metric : str, optional
        None: the first of the usual metrics that any run has.
    baseline : str
        ``KEY=VALUE``; "" for none.
    targets, tuned, x_axis, grid, facet, arms, highlight, style
        As in :class:`Question`.
    labels : sequence of str
        Names as ``KEY=TEXT``, ``COLUMN=TEXT`` or ``KEY=VALUE=TEXT``.

    Raises
    ------
    InputError
        If no run has the metric, a key does not vary, or a label or a tuned key is of nothing that a run has.
    """
    metric = metric or default_metric([(run, run.columns) for run in study.runs])
    _refuse_missing(study, metric)
    _refuse_impossible(study, metric, targets)
    values = _values(study) if tuned or labels else {}
    tuned = [study.full_name(key) for key in tuned]
    for key in tuned:
        _refuse_unknown("--tuned", "key", key, values)
    if grid:
        down, across = ([study.full_name(key) for key in keys] for keys in grid)
        _refuse_grid(study, down, across)
        grid = down, across
    compared = find_baseline(study, baseline, tuned) if baseline else NO_BASELINE
    facet, arms = ([study.full_name(key) for key in keys] for keys in (facet, arms))
    for key in dict.fromkeys((*facet, *arms)):
        refuse_constant(study, key)
        if key in facet and key in arms:
            raise InputError(f"{key} is in --facet and in --arms; name it in one of them")
    names = dict(_named(study, label, values) for label in labels)
    selection = parse_selection(select, metric, study.column_label(metric, names))
    return Question(metric, selection, targets, compared, tuned, x_axis, grid, facet, arms, highlight, names, style)


def _values(study: Study) -> dict[str, set[str]]:
    """Return the keys that any run has, each with its values as texts."""
    found: dict[str, set[str]] = {}
    for record in (run.record for cell in study.cells for run in cell.runs.values()):
        for key, value in (*record["choices"].items(), *leaves(record["config"])):
            found.setdefault(key, set()).add(format_value(value))
    return found


def _refuse_unknown(option: str, kind: str, word: str, known: Iterable[str], rest: str = "") -> None:
    """Refuse a word that is not known, and suggest one that is near or ends in it."""
    if word not in known:
        near = [name for name in known if name.endswith(f".{word}")] or get_close_matches(word, known, 1, cutoff=0.7)
        hint = f"try {option} {near[0]}{rest}" if near else f"leave it out of {option}"
        raise InputError(f"no run has the {kind} {word}; {hint}")


def _named(study: Study, label: str, values: Mapping[str, Collection[str]]) -> tuple[str, str]:
    """Return what a label is for, and its text."""
    what, _, text = printable(label).rpartition("=")
    key, _, value = what.partition("=")
    if not key or not text:
        raise InputError(
            f"--label must be KEY=TEXT, COLUMN=TEXT or KEY=VALUE=TEXT, got {label}; try --label strategy=fedavg=FedAvg"
        )
    full = study.full_name(key)
    if not value:
        columns = {name for run in study.runs for name in run.columns}
        _refuse_unknown("--label", "key or column", full, {*values, *columns}, f"={text}")
        return full, text
    _refuse_unknown("--label", "key", full, values, f"={value}={text}")
    _refuse_unknown("--label", "value", f"{full}={value}", [f"{full}={each}" for each in values[full]], f"={text}")
    return f"{full}={value}", text


def _refuse_missing(study: Study, metric: str) -> None:
    if any(metric in run.columns for run in study.runs):
        return
    columns = [*dict.fromkeys(name for run in study.runs for name in run.columns if "/" in name)]
    damaged = [run.error for run in study.runs if run.state == "damaged"]
    if damaged and not columns:
        raise InputError(f"no run can be read: {damaged[0]}")
    if not columns:
        raise InputError("no run has a round yet")
    entries = [name for name in columns if name.startswith(f"{metric}/")]
    if entries:
        raise InputError(f"{metric} has a column for each entry; try --metric with one of {', '.join(entries)}")
    near = get_close_matches(metric, columns, 1, cutoff=0.7)
    hint = near[0] if near else f"with one of {', '.join(sorted(columns))}"
    raise InputError(f"no run has {metric}; try --metric {hint}")


def _refuse_impossible(study: Study, metric: str, targets: Sequence[float]) -> None:
    largest = max(np.nanmax(run.column(metric), initial=-np.inf) for run in study.runs)
    for target in targets:
        if is_share(metric, study.declared) and largest <= 1 < target:
            raise InputError(f"--targets {format_value(target)} is above the largest {metric}, 1; try --targets 0.9")


def _refuse_grid(study: Study, rows: Sequence[str], cols: Sequence[str]) -> None:
    for key in (*rows, *cols):
        refuse_constant(study, key)
        if key in rows and key in cols:
            raise InputError(f"--rows and --cols are both {key}; name two different keys")
    if not any({*rows} & cell.keys.keys() and {*cols} & cell.keys.keys() for cell in study.cells):
        raise InputError(f"no run has both {', '.join(rows)} and {', '.join(cols)}")
