"""A paper's numbers beside ours, where the runs are of a preset whose table is in ``published/``."""

import csv
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from fedresearch.errors import InputError
from fedresearch.report.baseline import baseline
from fedresearch.report.cells import Cell, Study
from fedresearch.report.final import outcome
from fedresearch.report.select import selection
from fedresearch.report.statistics import speed_up, told_duration
from fedresearch.report.tables import Entry, Table, measured, number
from fedresearch.report.targets import AXES, to_target
from fedresearch.runs.comparison import shown

_MEASURE = "measure"


def published_table(study: Study) -> Table | None:
    """Return the table of a paper's numbers and ours; None where the runs are of no such preset, or of several."""
    choices = [run.record["choices"] for cell in study.cells for run in cell.runs.values()]
    experiments = {chosen.get("experiment") for chosen in choices}
    name = str(next(iter(experiments), None))
    path = resources.files("fedresearch.report").joinpath("published", f"{name}.csv")
    if len(experiments) != 1 or any(chosen.get("tune") for chosen in choices) or not path.is_file():
        return None
    lines = [*csv.DictReader(path.read_text("utf-8").splitlines())]
    keys = [*lines[0]][: [*lines[0]].index(_MEASURE)]
    columns = [*(key.rpartition(".")[2] for key in keys), _MEASURE, "published", "ours", "ratio", "accepted", "within"]
    rows, records = [], []
    for line in lines:
        for cell in study.cells:
            if all(_value(cell, key) == line[key] for key in keys):
                ours, text = _ours(study, cell, line[_MEASURE], keys)
                rows.append([*(Entry(line[key], line[key]) for key in (*keys, _MEASURE)), *_entries(line, ours, text)])
                records.append({**line, "ours": number(ours)})
    if not rows:
        return None
    sources = "; ".join(dict.fromkeys(line["source"] for line in lines))
    caption = (
        f"Beside ours: {sources}. The accepted band is of ours; where there is none, the numbers are for comparison."
    )
    return Table("published", "Published and ours", caption, columns, rows, records)


def _value(cell: Cell, key: str) -> str:
    """Return what a cell has at a key, or the option of a group, as the CSV writes it: "" for nothing."""
    record = next(iter(cell.runs.values())).record
    node: Any = record["choices"].get(key, record["config"])
    if key not in record["choices"]:
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
    return "" if node is None else shown(node)


def _ours(study: Study, cell: Cell, measure: str, keys: list[str]) -> tuple[float, str]:
    """Return our number for a measure, and the same in words."""
    what, _, of = measure.partition(" ")
    if what in ("last", "best"):
        found = outcome(cell, selection({"last": "last", "best": "best_test"}[what], of))
        return found.mean, measured(found.mean, found.half_width)
    target = float(of.rpartition(" ")[2])
    taken = to_target(cell, "eval/accuracy", target, "rounds")
    if what == "rounds":
        return taken.median, told_duration(taken, AXES["rounds"])
    # speed-up over KEY=VALUE to TARGET
    try:
        other = baseline(study, of.split(" ")[1], [key for key in study.keys if key not in keys]).of[cell.label]
    except (InputError, KeyError):  # the baseline was not run
        return math.nan, "–"
    return speed_up(to_target(other, "eval/accuracy", target, "rounds"), taken)


def _entries(line: Mapping[str, str], ours: float, text: str) -> list[Entry]:
    theirs = float(line["published"].lstrip(">"))
    ratio = math.nan if line["published"].startswith(">") else ours / theirs
    low, high = (float(line[end] or outermost) for end, outermost in (("low", "-inf"), ("high", "inf")))
    has_band = math.isfinite(low) or math.isfinite(high)
    accepted = "–".join("" if math.isinf(end) else f"{end:.4g}" for end in (low, high)) if has_band else ""
    within = ("yes" if low <= ours <= high else "no") if has_band else ""
    return [
        Entry(line["published"] + (f" ± {line['spread']}" if line["spread"] else ""), theirs),
        Entry(text, number(ours)),
        Entry("–" if math.isnan(ratio) else f"{ratio:.2f}", number(ratio)),
        Entry(accepted, accepted),
        Entry(within, within),
    ]
