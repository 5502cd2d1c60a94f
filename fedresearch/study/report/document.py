"""A report as the page reads it: values that JSON has."""

import base64
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedresearch.dotted_keys import leaves
from fedresearch.runs.directory import now
from fedresearch.runs.loaded import DEFAULT_METRICS
from fedresearch.study.report.cells import Cell
from fedresearch.study.report.curves import drawn, mean_curve, mean_x
from fedresearch.study.report.load import Column, Run
from fedresearch.study.report.making import AXIS_LABELS, Report
from fedresearch.study.report.tables import Table


def document(made: Report, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a report, and its figures as PNG by their names, as the page reads them."""
    found = made.study
    metrics = [made.metric, *(name for name in (*DEFAULT_METRICS, "train/loss") if name != made.metric)]
    known = [name for name in metrics if any(name in run.columns for cell in found.cells for run in drawn(cell))]
    return {
        "title": made.title,
        "command": shlex.join(["fedresearch", *sys.argv[1:]]),
        "generated": now(),
        "warnings": [*made.warnings],
        "notes": [*made.notes],
        "axes": [{"id": name, "label": label.capitalize()} for name, label in AXIS_LABELS.items()],
        "metrics": [{"id": name, "label": name} for name in known],
        "targets": [{"metric": made.metric, "value": target} for target in made.targets],
        "arms": [_arm(cell, known) for cell in found.cells if drawn(cell)],
        "tables": [_table(table) for table in made.tables],
        "figures": [
            {
                "title": name.replace("_", " "),
                "caption": made.figures[name].caption,
                "src": f"data:image/png;base64,{base64.b64encode(picture).decode()}",
            }
            for name, picture in pictures.items()
        ],
        **_runs(made),
    }


def _arm(cell: Cell, metrics: Sequence[str]) -> dict[str, Any]:
    curves = {name: mean_curve(cell, "rounds", name) for name in metrics}
    return {
        "label": cell.label,
        "n": len(drawn(cell)),
        "x": {name: _column(mean_x(cell, name)) for name in AXIS_LABELS},
        "y": {
            name: {"mean": _column(curve.mean), "low": _column(curve.low), "high": _column(curve.high)}
            for name, curve in curves.items()
        },
    }


def _column(values: Column) -> list[float | None]:
    """Return numbers to six digits, more than a screen shows; null for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _table(table: Table) -> dict[str, Any]:
    return {
        "id": table.id,
        "title": table.title,
        "caption": table.caption,
        "notes": [*table.notes],
        "columns": [
            {"label": label, "numeric": numeric} for label, numeric in zip(table.columns, table.numeric, strict=True)
        ],
        "rows": [[{"text": entry.text, "sort": entry.sort} for entry in row] for row in table.rows],
    }


def _runs(made: Report) -> dict[str, Any]:
    """Return every run, and apart from them what all their configs and records have in common."""
    keys = made.study.keys

    def place(pair: tuple[str, Any]) -> int:
        """Sort the keys that tell cells apart before the config's others, and these before the rest."""
        key = pair[0].removeprefix("run: choices.")
        return keys.index(key) if key in keys else len(keys) + pair[0].startswith("run: ")

    of_run = [(cell.label, replicate, run) for cell in made.study.cells for replicate, run in cell.runs.items()] + [
        ("", "", run) for run in (*made.study.repeated, *made.study.unread)
    ]
    flat = [dict(_told(run)) for _, _, run in of_run]
    recorded = [one for one in flat if one]
    base = {
        key: value
        for key, value in (recorded[0] if recorded else {}).items()
        if all(key in one and type(one[key]) is type(value) and one[key] == value for one in recorded)
    }
    runs = [
        {
            "directory": str(run.directory),
            "arm": label,
            "seed": replicate,
            "state": run.state,
            "rounds": run.num_rounds,
            "figure": _figure(made.selected.choose(run)),
            "error": run.error,
            "changed": {key: value for key, value in sorted(one.items(), key=place) if key not in base},
        }
        for (label, replicate, run), one in zip(of_run, flat, strict=True)
    ]
    return {"base": base, "runs": runs}


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def _told(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield what a run's record says, flat: its config, and whatever else but its numbers."""
    yield from leaves(run.record.get("config", {}))
    others = {name: value for name, value in run.record.items() if name not in ("config", "result", "format")}
    for name, value in leaves(others):
        yield f"run: {name}", value
