"""The tables of final performance: means over seeds, runs that are left out, and differences to the baseline."""

import math
from collections.abc import Mapping
from typing import Any

from fedresearch.runs.columns import is_share
from fedresearch.runs.comparison import format_value
from fedresearch.study.report.baseline import Baseline, belongs_to_option
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.outcomes import LEFT_OUT, Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import IQM, Paired, holm, iqm, paired
from fedresearch.study.report.tables import Entry, Table, format_interval, format_mean, format_p_value, none_if_nan

_IQM_FIELDS = {"iqm": "value", "iqm_low_95": "low", "iqm_high_95": "high"}


def final_table(study: Study, question: Question, outcomes: Mapping[str, Outcome], marks: Mapping[str, str]) -> Table:
    """Return the table of final performance with a row for each cell.

    Parameters
    ----------
    outcomes, marks : mapping
        By cell's label.
    """
    baseline = question.baseline
    pairs = {label: _pair(outcomes[label], outcomes[partner.label]) for label, partner in baseline.partners.items()}
    adjusted = {
        name: dict(zip(pairs, holm([getattr(pair, name) for pair in pairs.values()]), strict=True))
        for name in ("t_p", "wilcoxon_p")
    }
    iqms = {label: iqm([[*each.values.values()]]) if len(each.values) > 3 else None for label, each in outcomes.items()}
    some_left_out = any(each.left_out for each in outcomes.values())
    some_iqm = any(iqms.values())
    columns = [*key_columns(study), question.metric, "n"]
    columns += ["not in the mean"] * some_left_out + ["IQM [95 %]"] * some_iqm
    columns += ["difference", "p (t)", "p (Wilcoxon)"] * bool(baseline.text)
    rows, records = [], []
    for cell in study.cells:
        outcome, middle = outcomes[cell.label], iqms[cell.label]
        num_values = len(outcome.values)
        row = [
            *key_entries(study, cell, marks),
            Entry(format_mean(outcome.mean, outcome.half_width), none_if_nan(outcome.mean)),
        ]
        row.append(Entry(str(num_values), num_values))
        record = {key: cell.keys.get(key) for key in study.keys} | {"metric": question.metric}
        record |= {"mean": none_if_nan(outcome.mean), "half_width_95": none_if_nan(outcome.half_width), "n": num_values}
        record |= {reason: outcome.left_out.get(reason, 0) for reason in LEFT_OUT}
        if some_left_out:
            row.append(_left_out_entry(outcome))
        if some_iqm:
            row.append(_iqm_entry(middle))
        record |= {field: middle and getattr(middle, name) for field, name in _IQM_FIELDS.items()}
        if baseline.text:
            row += _difference_entries(cell, pairs, adjusted, baseline)
            record |= _difference_record(cell, pairs, adjusted)
        rows.append(row)
        records.append(record)
    caption = _caption(question, some_left_out, max((pair.n for pair in pairs.values()), default=0))
    return Table("final", "Final performance", caption, columns, rows, records)


def _caption(question: Question, some_left_out: bool, most_shared_seeds: int) -> str:
    caption = (
        f"{question.selection.caption}: mean ± half the 95 % t-interval over n seeds (none for one seed), rounded to "
        "the interval's second digit; all digits are in final.csv."
    )
    if some_left_out:
        caption += " Runs that failed, diverged, stalled or are unfinished are not in the mean."
    if question.baseline.text:
        caption += (
            f" Differences to {question.baseline.text} use shared seeds, with their 95 % t-interval; p-values are from "
            "the paired t-test (none without spread) and the exact signed-rank test, each with Holm's correction for "
            "all comparisons of the table."
        )
        if 1 < most_shared_seeds < 6:
            smallest = f"{2.0 ** (1 - most_shared_seeds):g}"
            caption += (
                f" Before this correction, p of a signed-rank test of {most_shared_seeds} seeds is at least {smallest}."
            )
    return caption


def key_columns(study: Study) -> list[str]:
    """Return the heads of the columns that identify a cell."""
    return [*map(study.short_name, study.keys)] or ["cell"]


def key_entries(study: Study, cell: Cell, marks: Mapping[str, str]) -> list[Entry]:
    """Return an entry for each key that varies, the first with the cell's mark."""
    entries = []
    for key in study.keys or [""]:
        value = cell.keys.get(key)
        text = format_value(value) if key in cell.keys else "" if key else "all runs"
        entries.append(Entry(text, value if isinstance(value, int | float) else text or None))
    return [Entry(marked(entries[0].text, cell, marks), entries[0].sort), *entries[1:]]


def marked(text: str, cell: Cell, marks: Mapping[str, str]) -> str:
    """Return a text about a cell with the cell's mark behind it."""
    return f"{text} {marks.get(cell.label, '')}".strip()


def _pair(outcome: Outcome, baseline: Outcome) -> Paired:
    shared = [replicate for replicate in outcome.values if replicate in baseline.values]
    return paired([outcome.values[seed] for seed in shared], [baseline.values[seed] for seed in shared])


def _left_out_entry(outcome: Outcome) -> Entry:
    counts = [f"{outcome.left_out[why]} {words}" for why, words in LEFT_OUT.items() if why in outcome.left_out]
    return Entry(", ".join(counts), ", ".join(counts))


def _iqm_entry(middle: IQM | None) -> Entry:
    return Entry(format_interval(middle.value, middle.low, middle.high), middle.value) if middle else Entry("–")


def _difference_entries(
    cell: Cell, pairs: Mapping[str, Paired], adjusted: Mapping[str, Mapping[str, float]], baseline: Baseline
) -> list[Entry]:
    if cell.label not in pairs:
        return [Entry("baseline" if baseline.includes(cell) else "–"), Entry(""), Entry("")]
    pair = pairs[cell.label]
    text = format_mean(pair.mean, pair.half_width) if pair.n else "no shared seed"
    if pair.n and pair.mean > 0:
        text = f"+{text}"
    if 0 < pair.n < len(cell.runs):
        text += f" (n={pair.n})"
    p_values = [of_cells[cell.label] for of_cells in adjusted.values()]
    return [Entry(text, none_if_nan(pair.mean)), *(Entry(format_p_value(p), none_if_nan(p)) for p in p_values)]


def _difference_record(
    cell: Cell, pairs: Mapping[str, Paired], adjusted: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    pair = pairs.get(cell.label)
    record: dict[str, Any] = {"difference": pair and none_if_nan(pair.mean), "shared_seeds": pair and pair.n}
    record["difference_half_width_95"] = pair and none_if_nan(pair.half_width)
    for name, of_cells in adjusted.items():
        test = name.removesuffix("_p")
        record[f"p_{test}"] = pair and none_if_nan(getattr(pair, name))
        record[f"p_{test}_holm"] = none_if_nan(of_cells.get(cell.label, math.nan))
    return record


def across_table(study: Study, question: Question, outcomes: Mapping[str, Outcome]) -> Table | None:
    """Return the interquartile mean of each value of the baseline's key over all settings of the other keys.

    Tuned keys are not part of a setting. Only settings in which all values share two seeds or more count, and only
    those seeds, so that each setting has the same weight for each value. None where there are fewer than two such
    settings, or for a metric that is not a share, such as a loss, which has no common scale across settings.
    """
    key = question.baseline.text.partition("=")[0]
    if not key or not is_share(question.metric, study.declared):
        return None
    cells = [cell for cell in study.cells if key in cell.keys]
    settings: dict[str, dict[str, Mapping[str, float]]] = {}
    for cell in cells:
        others = {
            name: value
            for name, value in cell.keys.items()
            if name not in (key, *question.tuned) and not belongs_to_option(name, key)
        }
        settings.setdefault(str(others), {})[_value(study, cell, key)] = outcomes[cell.label].values
    values = dict.fromkeys(_value(study, cell, key) for cell in cells)
    common = []
    for setting in settings.values():
        seeds = [seed for seed in next(iter(setting.values())) if all(seed in scores for scores in setting.values())]
        if setting.keys() == values.keys() and len(seeds) > 1:
            common.append({value: [scores[seed] for seed in seeds] for value, scores in setting.items()})
    if len(common) < 2 or len(values) < 2:
        return None
    rows, records = [], []
    for value in values:
        middle = iqm([setting[value] for setting in common])
        n = sum(len(setting[value]) for setting in common)
        assert middle is not None  # there are two settings with two seeds each
        rows.append([Entry(value, value), _iqm_entry(middle), Entry(str(n), n)])
        record = {key: value, "metric": question.metric, "n": n, "settings": len(common)}
        records.append(record | vars(middle))
    caption = (
        f"Interquartile mean of {question.selection.caption}, over {len(common)} settings of the other keys and the "
        "seeds that all values share there, with the 95 % interval of a bootstrap stratified by setting "
        "(Agarwal et al. 2021)."
    )
    return Table("across", "Across settings", caption, [study.short_name(key), "IQM [95 %]", "n"], rows, records)


def _value(study: Study, cell: Cell, key: str) -> str:
    others = {name: value for name, value in cell.keys.items() if belongs_to_option(name, key)}
    return ", ".join(filter(None, [format_value(cell.keys[key]), study.describe(others)]))
