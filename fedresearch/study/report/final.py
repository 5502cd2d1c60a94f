"""The tables of final performance: means over seeds, what is not in them, and how cells differ from the baseline."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedresearch.runs.comparison import format_value
from fedresearch.runs.record import larger_is_better
from fedresearch.study.report.baseline import Baseline, of_option
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.select import Selection
from fedresearch.study.report.statistics import holm, iqm, paired, t_half_width
from fedresearch.study.report.tables import Entry, Table, between, measured, number, rounded


@dataclass(frozen=True)
class Outcome:
    """What became of a cell's seeds.

    Parameters
    ----------
    values : mapping
        Replicate to its number, of finished runs.
    left_out : mapping
        Why others have none, one of those below, to their count.
    """

    values: Mapping[str, float]
    left_out: Mapping[str, int]

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without any."""
        return float(np.mean([*self.values.values()])) if self.values else math.nan

    @property
    def half_width(self) -> float:
        """Half the 95 % t-interval of the mean."""
        return t_half_width([*self.values.values()])


def outcome(cell: Cell, selected: Selection) -> Outcome:
    """Return the selected number of each of a cell's finished runs."""
    values, left_out = {}, Counter[str]()
    for replicate, run in cell.runs.items():
        value = selected.choose(run) if run.state == "finished" else math.nan
        if math.isfinite(value):
            values[replicate] = value
        elif run.state == "finished":
            left_out["without"] += 1
        else:
            left_out[run.state if run.state in _LEFT_OUT else "unfinished"] += 1
    return Outcome(values, left_out)


def final_table(study: Study, selected: Selection, metric: str, compared: Baseline, marks: Mapping[str, str]) -> Table:
    """Return the table of final performance, a row a cell."""
    outcomes = {cell.label: outcome(cell, selected) for cell in study.cells}
    pairs = {label: _paired(outcomes[label], outcomes[other.label]) for label, other in compared.of.items()}
    t_p, wilcoxon_p = (
        dict(zip(pairs, holm([getattr(pair, name) for pair in pairs.values()]), strict=True))
        for name in ("t_p", "wilcoxon_p")
    )
    some_left_out = any(of.left_out for of in outcomes.values())
    middles = {label: iqm([[*of.values.values()]]) if len(of.values) > 3 else None for label, of in outcomes.items()}
    some_middle = any(middles.values())
    columns = [*key_columns(study), metric, "n"]
    columns += ["not in the mean"] * some_left_out + ["IQM [95 %]"] * some_middle
    columns += ["difference", "p (t)", "p (Wilcoxon)"] * bool(compared.text)
    rows, records = [], []
    for cell in study.cells:
        of, middle = outcomes[cell.label], middles[cell.label]
        row = [*key_entries(study, cell, marks), Entry(measured(of.mean, of.half_width), number(of.mean))]
        row.append(Entry(str(len(of.values)), len(of.values)))
        record = {key: cell.keys.get(key) for key in study.keys}
        record |= {"metric": metric, "mean": number(of.mean), "half_width_95": number(of.half_width)}
        record |= {"n": len(of.values)} | {why: of.left_out.get(why, 0) for why in _LEFT_OUT}
        if some_left_out:
            words = ", ".join(f"{of.left_out[why]} {words}" for why, words in _LEFT_OUT.items() if why in of.left_out)
            row.append(Entry(words, words))
        if some_middle:
            text = between(middle.value, middle.low, middle.high) if middle else "–"
            row.append(Entry(text, middle.value if middle else None))
        record |= {f"iqm{end}": middle and getattr(middle, name) for end, name in _IQM.items()}
        if compared.text:
            row += _difference_entries(cell, pairs, t_p, wilcoxon_p, compared)
            pair = pairs.get(cell.label)
            record |= {"difference": pair and number(pair.mean), "shared_seeds": pair and pair.n}
            record |= {"difference_half_width_95": pair and number(pair.half_width)}
            for name, adjusted in (("t", t_p), ("wilcoxon", wilcoxon_p)):
                record |= {f"p_{name}": pair and number(getattr(pair, f"{name}_p"))}
                record |= {f"p_{name}_holm": number(adjusted.get(cell.label, math.nan))}
        rows.append(row)
        records.append(record)
    caption = (
        f"{selected.caption}: mean ± half the 95 % t-interval over n seeds (none for one seed), rounded to "
        "the interval's second digit; all digits are in final.csv."
    )
    if some_left_out:
        caption += " Runs that failed, diverged, stalled or are unfinished are not in the mean."
    if compared.text:
        caption += (
            f" Differences to {compared.text} are of shared seeds, with their 95 % t-interval; p-values are of the "
            "paired t-test (none without spread) and of the exact signed-rank test, each after Holm for all of the "
            "table's comparisons."
        )
        most = max((pair.n for pair in pairs.values()), default=0)
        if 1 < most < 6:
            caption += f" Before Holm, no signed-rank test of {most} seeds has p below {2.0 ** (1 - most):g}."
    return Table("final", "Final performance", caption, columns, rows, records)


_LEFT_OUT = {
    "failed": "failed",
    "diverged": "diverged",
    "stalled": "stalled",
    "unfinished": "unfinished",
    "without": "without the metric",
}
_IQM = {"": "value", "_low_95": "low", "_high_95": "high"}


def key_columns(study: Study) -> list[str]:
    """Return the heads of the columns that tell a cell."""
    return [*map(study.short, study.keys)] or ["cell"]


def key_entries(study: Study, cell: Cell, marks: Mapping[str, str]) -> list[Entry]:
    """Return what tells a cell, an entry a key that varies; the first one with the cell's mark."""
    entries = []
    for key in study.keys or [""]:
        value = cell.keys.get(key)
        text = format_value(value) if key in cell.keys else "" if key else "all runs"
        entries.append(Entry(text, value if isinstance(value, int | float) else text or None))
    return [Entry(marked(entries[0].text, cell, marks), entries[0].sort), *entries[1:]]


def marked(text: str, cell: Cell, marks: Mapping[str, str]) -> str:
    """Return a text with the mark of the cell that it is of behind it."""
    return f"{text} {marks.get(cell.label, '')}".strip()


def _paired(arm: Outcome, other: Outcome) -> Any:
    shared = [replicate for replicate in arm.values if replicate in other.values]
    return paired([arm.values[one] for one in shared], [other.values[one] for one in shared])


def _difference_entries(
    cell: Cell,
    pairs: Mapping[str, Any],
    t_p: Mapping[str, float],
    wilcoxon_p: Mapping[str, float],
    compared: Baseline,
) -> list[Entry]:
    if cell.label not in pairs:
        is_baseline = any(cell is other for other in compared.of.values())
        return [Entry("baseline" if is_baseline else "–"), Entry(""), Entry("")]
    pair = pairs[cell.label]
    text = measured(pair.mean, pair.half_width) if pair.n else "no shared seed"
    if pair.n and pair.mean > 0:
        text = f"+{text}"
    if 0 < pair.n < len(cell.runs):
        text += f" (n={pair.n})"
    p_values = (t_p[cell.label], wilcoxon_p[cell.label])
    return [Entry(text, number(pair.mean)), *(Entry(rounded(p), number(p)) for p in p_values)]


def middle_table(
    study: Study, selected: Selection, metric: str, compared: Baseline, tuned: Sequence[str]
) -> Table | None:
    """Return the interquartile mean of each value of the baseline's key over all settings of the other keys.

    Keys that were tuned are none of them. Only settings in which all values share two seeds or more, and only those
    seeds, so that each setting weighs as much for one value as for another. None where there are not two such settings,
    or for a loss, which has no scale that settings share.
    """
    key = compared.text.partition("=")[0]
    if not key or not larger_is_better(metric):
        return None
    cells = [cell for cell in study.cells if key in cell.keys]
    settings: dict[str, dict[str, Mapping[str, float]]] = {}
    for cell in cells:
        others = {
            name: value for name, value in cell.keys.items() if name not in (key, *tuned) and not of_option(name, key)
        }
        settings.setdefault(str(others), {})[_arm(study, cell, key)] = outcome(cell, selected).values
    arms = dict.fromkeys(_arm(study, cell, key) for cell in cells)
    common = []
    for setting in settings.values():
        seeds = [seed for seed in next(iter(setting.values())) if all(seed in values for values in setting.values())]
        if setting.keys() == arms.keys() and len(seeds) > 1:
            common.append({arm: [values[seed] for seed in seeds] for arm, values in setting.items()})
    if len(common) < 2 or len(arms) < 2:
        return None
    rows, records = [], []
    for arm in arms:
        middle = iqm([setting[arm] for setting in common])
        n = sum(len(setting[arm]) for setting in common)
        assert middle is not None  # two settings with two seeds each
        text = between(middle.value, middle.low, middle.high)
        rows.append([Entry(arm, arm), Entry(text, middle.value), Entry(str(n), n)])
        records.append({"arm": arm, "metric": metric, "n": n, "settings": len(common)} | vars(middle))
    caption = (
        f"Interquartile mean of {selected.caption}, over {len(common)} settings of the other keys and the seeds that "
        "all have in them, with the 95 % interval of a bootstrap stratified by setting (Agarwal et al. 2021)."
    )
    return Table("across", "Across settings", caption, [study.short(key), "IQM [95 %]", "n"], rows, records)


def _arm(study: Study, cell: Cell, key: str) -> str:
    others = {name: value for name, value in cell.keys.items() if of_option(name, key)}
    return ", ".join(
        [
            format_value(cell.keys[key]),
            *(f"{study.short(name)}={format_value(value)}" for name, value in others.items()),
        ]
    )


def pivot(
    study: Study,
    rows: str,
    cols: str,
    others: Sequence[str],
    entry: Callable[[Cell], Entry],
    table_id: str,
    title: str,
    caption: str,
) -> Table:
    """Return a table with the values of one key down and those of another across; other keys have a column each."""
    heads = dict.fromkeys(format_value(cell.keys[cols]) for cell in study.cells if cols in cell.keys)
    lines: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in study.cells:
        if rows in cell.keys and cols in cell.keys:
            line = tuple(format_value(cell.keys[key]) if key in cell.keys else "" for key in (*others, rows))
            lines.setdefault(line, {})[format_value(cell.keys[cols])] = cell
    names = [*map(study.short, others), study.short(rows)]
    body: list[Sequence[Entry]] = []
    records = []
    for line, cells in lines.items():
        entries = [entry(cells[head]) if head in cells else Entry("") for head in heads]
        body.append([*(Entry(text, text) for text in line), *entries])
        record: dict[str, Any] = dict(zip((*others, rows), line, strict=True))
        record |= {f"{cols}={head}": one.sort for head, one in zip(heads, entries, strict=True)}
        records.append(record)
    columns = [*names, *(f"{study.short(cols)}={head}" for head in heads)]
    return Table(table_id, title, caption, columns, body, records)
