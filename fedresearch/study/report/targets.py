"""The table of what it takes to reach a target: rounds, bytes, steps and seconds, and the speed-up by it."""

import math
from collections.abc import Callable, Mapping

from rich import filesize

from fedresearch.runs.comparison import format_value
from fedresearch.runs.record import larger_is_better
from fedresearch.study.report.baseline import Baseline
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.final import key_columns, key_entries
from fedresearch.study.report.load import Run
from fedresearch.study.report.select import axis
from fedresearch.study.report.statistics import Duration, crossing, median_duration, speed_up, told_duration
from fedresearch.study.report.tables import Entry, Table, number
from fedresearch.tracking.console import duration as told_seconds

# How far a run is along each axis, in words.
AXES: dict[str, Callable[[float], str]] = {
    "rounds": lambda rounds: f"{rounds:.0f}" if rounds >= 10 else f"{rounds:.2g}",
    "bytes": lambda count: filesize.decimal(round(count)),
    "steps": lambda steps: f"{steps:,.0f}",
    "seconds": told_seconds,
}


def to_target(cell: Cell, metric: str, target: float, axis_name: str) -> Duration:
    """Return how long a cell's seeds take to a target along an axis.

    A run that is not there counts as one that takes longer than it has gone, or, if it diverged, than it was to go.
    A run without any round, or that does not tell how far it is along the axis, does not count, since nothing is known
    of it; if it diverged in its first round, it counts as one that takes longer than all that it was to go or, along
    another axis than that of rounds, than the last of the others.
    """
    times, censored = [], []
    for run in cell.runs.values():
        x = axis(run, axis_name)
        if math.isfinite(x[-1] if run.num_rounds else math.nan):
            time = crossing(x, run.column(metric), target, larger_is_better(metric))
            never = math.isnan(time)
            times.append(float(x[-1]) * _share_to_go(run) if never else time)
            censored.append(never)
    at_once = [run for run in cell.runs.values() if run.state == "diverged" and not run.num_rounds]
    longest = max(times, default=math.nan)
    times += [_num_rounds(run) if axis_name == "rounds" else longest for run in at_once]
    censored += [True] * len(at_once)
    return median_duration(times, censored)


def _share_to_go(run: Run) -> float:
    return _num_rounds(run) / run.num_rounds if run.state == "diverged" else 1.0


def _num_rounds(run: Run) -> float:
    return float(run.planned_rounds or run.num_rounds)


def target_table(
    study: Study, metric: str, target: float, axis_name: str, compared: Baseline, marks: Mapping[str, str]
) -> Table:
    """Return the table of what it takes to reach a target, a row a cell."""
    durations = {cell.label: {name: to_target(cell, metric, target, name) for name in AXES} for cell in study.cells}
    columns = [*key_columns(study), *AXES]
    if compared.text:
        columns.insert(len(study.keys) + 1, "speed-up")
    rows, records = [], []
    for cell in study.cells:
        taken = durations[cell.label]
        entries = [Entry(told_duration(taken[name], told), number(taken[name].median)) for name, told in AXES.items()]
        # How many seeds reach it is said once.
        entries[1:] = [Entry(entry.text.partition(", ")[0], entry.sort) for entry in entries[1:]]
        record = {key: cell.keys.get(key) for key in study.keys} | {"metric": metric, "target": target}
        record |= {"seeds": taken["rounds"].total, "reached": taken["rounds"].reached}
        if compared.text:
            ratio, text = math.nan, "–"
            if cell.label in compared.of:
                ratio, text = speed_up(durations[compared.of[cell.label].label][axis_name], taken[axis_name])
            elif any(cell is other for other in compared.of.values()):
                ratio, text = 1.0, "baseline"
            entries.insert(1, Entry(text, number(ratio)))
            record["speed_up"] = number(ratio)
        for name, one in taken.items():
            record |= {f"{name}_median": number(one.median), f"{name}_low": number(one.low)}
            record |= {f"{name}_high": number(one.high), f"{name}_at_least": number(one.censored_at)}
        rows.append([*key_entries(study, cell, marks), *entries])
        records.append(record)
    way = "rises" if larger_is_better(metric) else "falls"
    caption = (
        f"What it takes until {metric} first {way} to {format_value(target)}: the monotone curve, linear between "
        "evaluated rounds (McMahan et al. 2017); median over seeds (range)."
    )
    if any(one.reached < one.total for of in durations.values() for one in of.values()):
        caption += (
            " Seeds that do not get there count as longer than they ran, those that diverged as longer than they were "
            "to run (Kaplan and Meier 1958); > is of a median that is not reached."
        )
    if compared.text:
        caption += f" Speed-up in {axis_name}: the ratio of the medians to those of {compared.text}."
    return Table(
        f"target_{format_value(target)}", f"To {metric} {format_value(target)}", caption, columns, rows, records
    )
