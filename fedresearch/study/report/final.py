"""The tables of final performance: means over seeds, runs that are left out, and differences to the baseline."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from fedresearch.runs.columns import is_share
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import in_a_sentence
from fedresearch.study.report.arms import Arrangement, label_cells
from fedresearch.study.report.baseline import belongs_to_option
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.levels import cell_entries, cell_levels, in_order, levels
from fedresearch.study.report.outcomes import LEFT_OUT, Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.ranks import LEVEL, Style, pair
from fedresearch.study.report.statistics import IQM, Paired, holm, iqm
from fedresearch.study.report.tables import (
    Entry,
    Table,
    format_interval,
    format_mean,
    format_p_value,
    legend,
    none_if_nan,
    over_seeds,
)

_IQM_FIELDS = {"iqm": "value", "iqm_low_95": "low", "iqm_high_95": "high"}
_TESTS = {"t_p": "p (t)", "wilcoxon_p": "p (Wilcoxon)"}


def final_table(
    study: Study,
    question: Question,
    outcomes: Mapping[str, Outcome],
    marks: Mapping[str, str],
    arrangement: Arrangement,
    styles: Mapping[str, Style],
) -> Table:
    """Return the table of final performance with a row for each cell.

    Parameters
    ----------
    outcomes, marks, styles : mapping
        By cell's label.
    """
    baseline, scale, found = question.baseline, study.scale(question.metric), cell_levels(study, arrangement)
    pairs = {label: pair(outcomes[label], outcomes[partner.label]) for label, partner in baseline.partners.items()}
    adjusted = {
        name: dict(zip(pairs, holm([getattr(each, name) for each in pairs.values()]), strict=True)) for name in _TESTS
    }
    tests = _useful_tests(pairs)
    iqms = {label: iqm([[*each.values.values()]]) if len(each.values) > 3 else None for label, each in outcomes.items()}
    some_left_out = any(each.left_out for each in outcomes.values())
    some_iqm = any(iqms.values())
    columns = [*(level.title for level in found), study.column_label(question.metric, question.names), "n"]
    columns += ["not in the mean"] * some_left_out + ["IQM [95 %]"] * some_iqm
    columns += ["difference", *(_TESTS[name] for name in tests)] * bool(baseline.text)
    rows, records = [], []
    for cell in in_order(study.cells, found):
        outcome, middle = outcomes[cell.label], iqms[cell.label]
        num_values = len(outcome.values)
        row = [*cell_entries(cell, found, marks), mean_entry(outcome, scale, styles.get(cell.label, ""))]
        row.append(Entry(str(num_values), num_values))
        record = {key: cell.keys.get(key) for key in study.keys} | {"metric": question.metric}
        record |= {"mean": none_if_nan(outcome.mean), "half_width_95": none_if_nan(outcome.half_width), "n": num_values}
        record |= {reason: outcome.left_out.get(reason, 0) for reason in LEFT_OUT}
        if some_left_out:
            row.append(_left_out_entry(outcome))
        if some_iqm:
            row.append(_iqm_entry(middle, scale))
        record |= {field: middle and getattr(middle, name) for field, name in _IQM_FIELDS.items()}
        if baseline.text:
            row.append(_difference_entry(cell, pairs, question, scale))
            row += [_p_entry(adjusted[name].get(cell.label)) for name in tests]
            record |= _difference_record(cell, pairs, adjusted)
        rows.append(row)
        records.append(record)
    has_intervals = any(len(outcome.values) > 1 for outcome in outcomes.values())
    caption = f"{question.selection.caption}: {mean_caption(study, outcomes, arrangement, styles)}"
    caption += " Numbers are rounded to the interval's second digit." * has_intervals + " All digits are in final.csv."
    if some_left_out:
        caption += " Runs that failed, diverged, stalled or are unfinished are not in the mean."
    if baseline.text:
        caption += _tests_caption(study, question, pairs, tests, scale)
    notes = legend(rows, {"–": "no finished run, too few seeds, or nothing to compare with"})
    return Table("final", "Final performance", caption, columns, rows, records, notes)


def mean_entry(outcome: Outcome, scale: float, style: Style, mark: str = "") -> Entry:
    """Return the entry of a mean and its interval, multiplied by the scale."""
    text = format_mean(scale * outcome.mean, scale * outcome.half_width)
    return Entry(f"{text} {mark}".strip(), none_if_nan(outcome.mean), style)


def mean_caption(
    study: Study, outcomes: Mapping[str, Outcome], arrangement: Arrangement, styles: Mapping[str, Style]
) -> str:
    """Return what means, bold and underlined entries are."""
    text = f"{_interval_caption({len(outcome.values) for outcome in outcomes.values()} - {0})}."
    titles = [in_a_sentence(level.title) for level in levels(study, arrangement.panel_keys, arrangement.names)]
    panels = " and ".join(titles)
    if "best" in styles.values():
        text += f" The best mean{f' for each {panels}' if panels else ''} is bold"
        if "close" in styles.values():
            text += (
                ", and those that are not significantly worse are underlined (two-sided paired t-test on shared seeds "
                f"with Holm's correction, p ≥ {LEVEL})"
            )
        if any({"diverged", "stalled"} & outcome.left_out.keys() for outcome in outcomes.values()):
            text += "; means of cells with a run that diverged or stalled are not compared"
        text += "."
    return text


def _interval_caption(numbers: Collection[int]) -> str:
    """Return what an entry is whose mean is over some number of seeds."""
    if not numbers:
        return "no run has a number for the mean"
    if max(numbers) == 1:
        return "n = 1 seed, so there is no interval"
    return f"mean ± half the 95 % t-interval over {over_seeds(numbers)}" + " (no interval for one seed)" * (
        1 in numbers
    )


def _useful_tests(pairs: Mapping[str, Paired]) -> list[str]:
    """Return the tests that could find something: not those whose corrected p cannot be below 0.25."""
    most = max((each.n for each in pairs.values()), default=0)
    smallest = len(pairs) * 2.0 ** (1 - most)
    return ["t_p"] * (most > 1) + ["wilcoxon_p"] * (most > 1 and smallest < 0.25)


def _tests_caption(
    study: Study, question: Question, pairs: Mapping[str, Paired], tests: list[str], scale: float
) -> str:
    points = ", in percentage points," * (scale != 1)
    text = f" Differences to {baseline_name(study, question)}{points} use shared seeds, with their 95 % t-interval."
    several = [each for each in pairs.values() if each.n > 1]
    signs = ["1 for equal samples"] * any(each.mean == each.half_width == 0 for each in several)
    signs += ["– where all differences are equal but not 0"] * any(math.isnan(each.t_p) for each in several)
    names = {
        "t_p": "the two-sided paired t-test" + f" ({'; '.join(signs)})" * bool(signs),
        "wilcoxon_p": "the exact signed-rank test",
    }
    if tests:
        text += f" p-values are from {' and '.join(names[name] for name in tests)}"
        text += ", with Holm's correction for the number of tests in the column." if len(pairs) > 1 else "."
    most = max((each.n for each in pairs.values()), default=0)
    if "wilcoxon_p" not in tests and most > 1:
        smallest = len(pairs) * 2.0 ** (1 - most)
        why = f"cannot be below {smallest:g} here" if smallest < 1 else "is 1 for so few seeds, whatever the numbers"
        text += f" The exact signed-rank test is only in final.csv: its p {why}."
    return text


def baseline_name(study: Study, question: Question) -> str:
    """Return what papers call the baseline."""
    baseline = question.baseline
    labels = label_cells(study, [baseline.text.partition("=")[0]], question.names)
    return next((labels[partner.label] for partner in baseline.partners.values()), baseline.text)


def _left_out_entry(outcome: Outcome) -> Entry:
    counts = [f"{outcome.left_out[why]} {words}" for why, words in LEFT_OUT.items() if why in outcome.left_out]
    return Entry(", ".join(counts), ", ".join(counts))


def _iqm_entry(middle: IQM | None, scale: float) -> Entry:
    if not middle:
        return Entry("–")
    return Entry(format_interval(*(scale * each for each in (middle.value, middle.low, middle.high))), middle.value)


def _difference_entry(cell: Cell, pairs: Mapping[str, Paired], question: Question, scale: float) -> Entry:
    if cell.label not in pairs:
        return Entry("baseline" if question.baseline.includes(cell) else "–")
    found = pairs[cell.label]
    if not found.n:
        is_shared = bool(cell.runs.keys() & question.baseline.partners[cell.label].runs.keys())
        return Entry("no seed finished in both" if is_shared else "no shared seed")
    text = format_mean(scale * found.mean, scale * found.half_width)
    if found.mean > 0:
        text = f"+{text}"
    if found.n < len(cell.runs):
        text += f" (n={found.n})"
    return Entry(text, none_if_nan(found.mean))


def _p_entry(p: float | None) -> Entry:
    return Entry("") if p is None else Entry(format_p_value(p), none_if_nan(p))


def _difference_record(
    cell: Cell, pairs: Mapping[str, Paired], adjusted: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    found = pairs.get(cell.label)
    record: dict[str, Any] = {"difference": found and none_if_nan(found.mean), "shared_seeds": found and found.n}
    record["difference_half_width_95"] = found and none_if_nan(found.half_width)
    for name, of_cells in adjusted.items():
        test = name.removesuffix("_p")
        record[f"p_{test}"] = found and none_if_nan(getattr(found, name))
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
    (level,) = levels(study, [key, *(name for name in study.keys if belongs_to_option(name, key))], question.names)
    entries = {_value(study, cell, key): level.entries[cell.label] for cell in cells}
    rows, records = [], []
    for value in values:
        middle = iqm([setting[value] for setting in common])
        n = sum(len(setting[value]) for setting in common)
        assert middle is not None  # there are two settings with two seeds each
        rows.append([entries[value], _iqm_entry(middle, 100), Entry(str(n), n)])
        record = {key: value, "metric": question.metric, "n": n, "settings": len(common)}
        records.append(record | vars(middle))
    caption = (
        f"{question.selection.caption}: interquartile mean over {len(common)} settings of the other keys and the "
        "seeds that all values share there, with the 95 % interval of a bootstrap stratified by setting "
        "(Agarwal et al. 2021)."
    )
    return Table("across", "Across settings", caption, [level.title, "IQM [95 %]", "n"], rows, records)


def _value(study: Study, cell: Cell, key: str) -> str:
    others = {name: value for name, value in cell.keys.items() if belongs_to_option(name, key)}
    return ", ".join(filter(None, [format_value(cell.keys[key]), study.describe(others)]))
