"""The table of what it takes to reach a target: rounds, bytes, steps and seconds, and the speed-up."""

import math
from collections.abc import Mapping

from fedresearch.runs.columns import larger_is_better
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import in_a_sentence, without_unit
from fedresearch.study.report.arms import Arrangement
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.baseline import Baseline
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.final import baseline_name
from fedresearch.study.report.levels import cell_entries, cell_levels, in_order
from fedresearch.study.report.load import LoadedRun
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import Duration, crossing, format_duration, median_duration, speed_up
from fedresearch.study.report.tables import Entry, Table, legend, none_if_nan

# What the first characters of entries mean.
SIGNS = {
    "–": "not known: the runs did not record it, or there is nothing to compare with",
    ">": "more than this: half of the seeds or more do not reach the target (for a speed-up: the baseline's)",
    "<": "less than this: half of the seeds or more do not reach the target",
}
_KINDS = {">": "at least", "<": "at most", "–": ""}


def duration_to(cell: Cell, metric: str, target: float, axis: str) -> Duration:
    """Return how long a cell's seeds take to a target along an axis.

    A run that does not reach it counts as longer than the run itself or, if it diverged, than the run was planned. A
    run without any round, or without a known place on the axis, does not count. If it diverged in its first round, it
    counts as longer than all its planned rounds or, along another axis, than the longest of the other runs.
    """
    times, censored = [], []
    for run in cell.runs.values():
        x = AXES[axis].progress(run)
        if run.num_rounds and math.isfinite(x[-1]):
            time = crossing(x, run.column(metric), target, larger_is_better(metric, run.declared))
            never = math.isnan(time)
            times.append(float(x[-1]) * _planned_share(run) if never else time)
            censored.append(never)
    without_round = [run for run in cell.runs.values() if run.state == "diverged" and not run.num_rounds]
    longest = max(times, default=math.nan)
    times += [_planned_rounds(run) if axis == "rounds" else longest for run in without_round]
    censored += [True] * len(without_round)
    return median_duration(times, censored)


def _planned_share(run: LoadedRun) -> float:
    """Return the planned rounds of a diverged run over its rounds; 1 for other runs."""
    return _planned_rounds(run) / run.num_rounds if run.state == "diverged" else 1.0


def _planned_rounds(run: LoadedRun) -> float:
    return float(run.planned_rounds or run.num_rounds)


def durations_to(study: Study, metric: str, target: float) -> dict[str, dict[str, Duration]]:
    """Return how long each cell takes to a target, by its label and axis."""
    return {cell.label: {axis: duration_to(cell, metric, target, axis) for axis in AXES} for cell in study.cells}


def target_table(
    study: Study,
    question: Question,
    target: float,
    durations: Mapping[str, Mapping[str, Duration]],
    marks: Mapping[str, str],
    arrangement: Arrangement,
) -> Table:
    """Return the table of what it takes to reach a target with a row for each cell.

    Parameters
    ----------
    durations : mapping
        As :func:`durations_to` returns.
    marks : mapping
        By cell's label.
    """
    metric, baseline, found = question.metric, question.baseline, cell_levels(study, arrangement)
    columns = [*(level.title for level in found), *AXES]
    if baseline.text:
        columns.insert(len(found) + 1, "speed-up")
    rows, records = [], []
    for cell in in_order(study.cells, found):
        taken = durations[cell.label]
        texts = [format_duration(taken[name], axis.format) for name, axis in AXES.items()]
        texts[1:] = [text.partition(", ")[0] for text in texts[1:]]  # the first has the number of seeds
        entries = [Entry(text, none_if_nan(taken[name].median)) for text, name in zip(texts, AXES, strict=True)]
        record = {key: cell.keys.get(key) for key in study.keys} | {"metric": metric, "target": target}
        record |= {"seeds": taken["rounds"].total, "reached": taken["rounds"].reached}
        if baseline.text:
            ratio, text = _speed_up(cell, baseline, durations, question.x_axis)
            entries.insert(1, Entry(text, none_if_nan(ratio)))
            record |= {"speed_up": none_if_nan(ratio), "speed_up_is": _KINDS.get(text[0], "exact")}
        for name, duration in taken.items():
            record |= {f"{name}_median": none_if_nan(duration.median), f"{name}_low": none_if_nan(duration.low)}
            record |= {
                f"{name}_high": none_if_nan(duration.high),
                f"{name}_at_least": none_if_nan(duration.censored_at),
            }
        rows.append([*cell_entries(cell, found, marks), *entries])
        records.append(record)
    all_durations = [duration for of_cell in durations.values() for duration in of_cell.values()]
    rises = larger_is_better(metric, study.declared)
    all_reached = all(duration.reached == duration.total for duration in all_durations)
    caption = _caption(study, question, target, rises, all_reached)
    title = "To " + " of ".join(target_texts(study, question, target))
    return Table(f"target_{format_value(target)}", title, caption, columns, rows, records, legend(rows, SIGNS))


def target_texts(study: Study, question: Question, target: float) -> tuple[str, str]:
    """Return the metric and the target in words, such as ``test accuracy`` and ``90 %``."""
    label = without_unit(study.column_label(question.metric, question.names))
    return in_a_sentence(label), target_text(study, question.metric, target)


def target_text(study: Study, metric: str, target: float) -> str:
    """Return a target as tables show it, such as ``90 %``."""
    scale = study.scale(metric)
    return format_value(target) if scale == 1 else f"{scale * target:.12g} %"


def partial_note(study: Study) -> str:
    """Return a sentence on runs that count for a target but are in no mean; "" without any."""
    states = {run.state for cell in study.cells for run in cell.runs.values() if run.num_rounds}
    partial = states - {"finished", "diverged"}
    return " Runs that failed, stalled or are unfinished count here up to their last round." * bool(partial)


def _speed_up(
    cell: Cell, baseline: Baseline, durations: Mapping[str, Mapping[str, Duration]], axis: str
) -> tuple[float, str]:
    if cell.label in baseline.partners:
        return speed_up(durations[baseline.partners[cell.label].label][axis], durations[cell.label][axis])
    return (1.0, "baseline") if baseline.includes(cell) else (math.nan, "–")


def _caption(study: Study, question: Question, target: float, rises: bool, all_reached: bool) -> str:
    label, value = target_texts(study, question, target)
    way = "rises" if rises else "falls"
    of_range = "range" if all_reached else "range of those that reach it"
    caption = (
        f"What it takes until {label} first {way} to {value}: median over seeds ({of_range}). "
        "Curves are made monotone, and are linear between evaluated rounds (McMahan et al. 2017)."
    )
    if not all_reached:
        caption += (
            " A seed that does not reach the target counts as longer than its run or, if it diverged, than its planned "
            "run (Kaplan and Meier 1958)."
        )
    caption += partial_note(study)
    if question.baseline.text:
        caption += (
            f" Speed-up in {question.x_axis}: the median of {baseline_name(study, question)} over that of the row."
        )
    return caption
