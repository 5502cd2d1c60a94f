"""A paper's numbers beside ours, for runs of a preset with a table in ``published/``."""

import csv
import math
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from fedresearch.config.help_text import CONF
from fedresearch.config.schema import counts
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import NO_NAMES, in_a_sentence
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.levels import marked
from fedresearch.study.report.outcomes import find_outcome, select_values
from fedresearch.study.report.selection import parse_selection
from fedresearch.study.report.statistics import Duration, format_duration, speed_up
from fedresearch.study.report.tables import Entry, Table, format_mean, legend, none_if_nan
from fedresearch.study.report.targets import duration_to, target_text

_MEASURE = "measure"
_METRIC = "eval/accuracy"  # which targets are of


def published_table(study: Study, marks: Mapping[str, str]) -> Table | None:
    """Return the table of a paper's numbers and ours; None unless all runs are of one preset with a table."""
    choices = [run.record["choices"] for cell in study.cells for run in cell.runs.values()]
    experiments = {chosen.get("experiment") for chosen in choices}
    name = str(next(iter(experiments), None))
    folder = resources.files("fedresearch.study.report").joinpath("published")
    files = {table.name: table for table in folder.iterdir()}  # a record may name any experiment
    path = files.get(f"{name}.csv")
    if len(experiments) != 1 or any(chosen.get("tune") for chosen in choices) or path is None:
        return None
    deviations = _deviations(study, name)
    lines = [*csv.DictReader(path.read_text("utf-8").splitlines())]
    keys = [*lines[0]][: [*lines[0]].index(_MEASURE)]
    columns = [*(key.rpartition(".")[2] for key in keys), _MEASURE, "published", "ours", "ratio", "accepted", "within"]
    rows, records = [], []
    for line in lines:
        for cell in study.cells:
            if all(_value(cell, key) == line[key] for key in keys):
                ours, text = _ours(study, cell, line[_MEASURE], keys)
                within = _within(line, ours, text) if not deviations else "–"
                measure, percent = _in_words(study, line[_MEASURE])
                line_keys = (Entry(word, word) for word in (*(line[key] for key in keys), measure))
                entries = _entries(line, ours, marked(text, cell, marks), percent)
                rows.append([*line_keys, *entries, Entry(within, within)])
                exact = None if _is_bound(text) else none_if_nan(ours)
                records.append({**line, "ours": exact, "ours_text": text, "within": within})
    if not rows:
        return None
    sources = "; ".join(dict.fromkeys(line["source"] for line in lines))
    caption = (
        f"Published: {sources}. Our number should lie in the accepted interval; rows without one are for comparison. "
        "± is the source's spread over its runs, and half our 95 % t-interval."
    )
    if any(line[_MEASURE].startswith("best ") for line in lines):
        caption += " Best is the best of all rounds, chosen on the test split."
    notes = legend(rows, {"–": "our runs do not say", ">": "more than this", "<": "less than this"})
    notes += [f"Not judged, since some runs differ from the preset: {', '.join(deviations)}."] if deviations else []
    return Table("published", "Published and ours", caption, columns, rows, records, notes)


def _deviations(study: Study, name: str) -> list[str]:
    """Return the overrides of any run that change its numbers, without those of keys that the preset sweeps."""
    swept = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.params
    typed = (word for cell in study.cells for run in cell.runs.values() for word in run.record.get("overrides", ()))
    keys = {word: word.lstrip("+~").partition("=")[0] for word in typed}
    return sorted(
        word for word, key in keys.items() if key not in swept and key not in ("experiment", "seed") and counts(key)
    )


def _value(cell: Cell, key: str) -> str:
    """Return a cell's value at a key, or its option of a group, as the CSV writes it; "" for none."""
    record = next(iter(cell.runs.values())).record
    node: Any = record["choices"].get(key, record["config"])
    if key not in record["choices"]:
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
    return "" if node is None else format_value(node)


def _ours(study: Study, cell: Cell, measure: str, keys: list[str]) -> tuple[float, str]:
    """Return our number for a measure, or a bound of it, and its text, in which a bound begins with < or >.

    A measure is ``last METRIC``, ``best METRIC``, ``rounds to TARGET`` or ``speed-up over KEY=VALUE to TARGET``.
    """
    kind, _, rest = measure.partition(" ")
    if kind in ("last", "best"):
        rule = parse_selection({"last": "last", "best": "best_test"}[kind], rest)
        outcome, scale = find_outcome(cell, select_values(cell.runs.values(), rule)), study.scale(rest)
        return outcome.mean, format_mean(scale * outcome.mean, scale * outcome.half_width)
    target = float(rest.rpartition(" ")[2])
    rounds = _rounds_to(cell, target)
    if kind == "rounds":
        time = rounds.censored_at if math.isnan(rounds.median) else rounds.median
        return time, format_duration(rounds, AXES["rounds"].format)
    key, _, value = rest.split(" ")[1].partition("=")
    wanted = [value if name == key else _value(cell, name) for name in keys]
    baselines = [other for other in study.cells if [_value(other, name) for name in keys] == wanted]
    if len(baselines) != 1:  # it was not run, or with several values of other keys
        return math.nan, "–"
    return speed_up(_rounds_to(baselines[0], target), rounds)


def _in_words(study: Study, measure: str) -> tuple[str, bool]:
    """Return a measure as other tables call it, with shares as per cent, and whether its numbers are shares."""
    kind, _, rest = measure.partition(" ")
    if kind in ("last", "best"):
        return f"{kind} {in_a_sentence(study.column_label(rest, NO_NAMES))}", study.scale(rest) != 1
    words, _, target = measure.rpartition(" ")
    return f"{words} {target_text(study, _METRIC, float(target))}", False


def _rounds_to(cell: Cell, target: float) -> Duration:
    return duration_to(cell, _METRIC, target, "rounds")


def _is_bound(text: str) -> bool:
    return text.startswith(("<", ">"))


def _band(line: Mapping[str, str]) -> tuple[float, float]:
    """Return the accepted interval; an end that the line leaves open is infinite."""
    return float(line["low"] or "-inf"), float(line["high"] or "inf")


def _within(line: Mapping[str, str], ours: float, text: str) -> str:
    """Return whether our number is accepted: yes, no, – where ours does not decide it, "" without an interval."""
    low, high = _band(line)
    if math.isinf(low) and math.isinf(high):
        return ""
    if text.startswith(">"):
        return "no" if ours > high else "–"
    if text.startswith("<"):
        return "no" if ours < low else "–"
    return "–" if math.isnan(ours) else "yes" if low <= ours <= high else "no"


def _entries(line: Mapping[str, str], ours: float, text: str, percent: bool) -> list[Entry]:
    def shown(number: str) -> str:
        return f"{Decimal(number).scaleb(2):f}" if percent else number  # all of the paper's digits, and no more

    theirs = float(line["published"].lstrip(">"))
    ratio = math.nan if _is_bound(line["published"]) or _is_bound(text) else ours / theirs
    low, high = ("" if math.isinf(end) else f"{(100 if percent else 1) * end:.4g}" for end in _band(line))
    accepted = f"{low}–{high}" if low or high else ""
    return [
        Entry(shown(line["published"]) + (f" ± {shown(line['spread'])}" if line["spread"] else ""), theirs),
        Entry(text, none_if_nan(ours)),
        Entry("–" if math.isnan(ratio) else f"{ratio:.2f}", none_if_nan(ratio)),
        Entry(accepted, accepted),
    ]
