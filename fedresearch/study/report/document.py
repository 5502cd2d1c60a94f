"""A report as the JSON values that its page reads."""

import base64
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedresearch.dotted_keys import leaves
from fedresearch.runs.columns import is_share
from fedresearch.runs.directory import now
from fedresearch.runs.loaded import usual_metrics
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.build import Report
from fedresearch.study.report.cells import Cell
from fedresearch.study.report.load import Column, LoadedRun
from fedresearch.study.report.plot_data import mean_curve, mean_progress, plotted_runs
from fedresearch.study.report.tables import Table


def document(report: Report, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a report as the page reads it.

    Parameters
    ----------
    pictures : mapping
        Name of a figure to its PNG.
    """
    metric = report.question.metric
    cells = [cell for cell in report.study.cells if plotted_runs(cell)]
    usual = dict.fromkeys([metric, *usual_metrics(report.study.runs), "train/loss"])
    metrics = [name for name in usual if any(name in run.columns for cell in cells for run in plotted_runs(cell))]
    return {
        "title": report.title,
        "metric": metric,
        "command": shlex.join(["fedresearch", *sys.argv[1:]]),
        "generated": now(),
        "warnings": [*report.warnings],
        "notes": [*report.notes],
        "axes": [{"id": name, "label": axis.label.capitalize()} for name, axis in AXES.items()],
        "metrics": [{"id": name, "label": name, "is_share": is_share(name, report.study.declared)} for name in metrics],
        "targets": [{"metric": metric, "value": target} for target in report.question.targets],
        "cells": [_cell(cell, metrics) for cell in cells],
        "tables": [_table(table) for table in report.tables],
        "figures": [
            {
                "title": name.replace("_", " "),
                "caption": report.figures[name].caption,
                "src": f"data:image/png;base64,{base64.b64encode(picture).decode()}",
            }
            for name, picture in pictures.items()
        ],
        **_runs(report),
    }


def _cell(cell: Cell, metrics: Sequence[str]) -> dict[str, Any]:
    curves = {name: mean_curve(cell, "rounds", name) for name in metrics}
    return {
        "label": cell.label,
        "n": len(plotted_runs(cell)),
        "x": {name: _column(mean_progress(cell, name)) for name in AXES},
        "y": {
            name: {"mean": _column(curve.mean), "low": _column(curve.low), "high": _column(curve.high)}
            for name, curve in curves.items()
        },
    }


def _column(values: Column) -> list[float | None]:
    """Return numbers to six digits, more than a screen shows, with null for those that are not finite."""
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
        "rows": [[vars(entry) for entry in row] for row in table.rows],
    }


def _runs(report: Report) -> dict[str, Any]:
    """Return all runs, and separately what their configs and records have in common."""
    keys = report.study.keys

    def place(pair: tuple[str, Any]) -> int:
        """Sort keys that distinguish cells first, then other keys of the config, then the record's."""
        key = pair[0].removeprefix("run: choices.")
        return keys.index(key) if key in keys else len(keys) + pair[0].startswith("run: ")

    runs = [(cell.label, replicate, run) for cell in report.study.cells for replicate, run in cell.runs.items()]
    runs += [("", "", run) for run in (*report.study.repeated, *report.study.unread)]
    facts = [dict(_facts(run)) for _, _, run in runs]
    recorded = [each for each in facts if each]
    base = {
        key: value
        for key, value in (recorded[0] if recorded else {}).items()
        if all(key in each and type(each[key]) is type(value) and each[key] == value for each in recorded)
    }
    rows = [
        {
            "directory": str(run.directory),
            "cell": label,
            "seed": replicate,
            "state": run.state,
            "rounds": run.num_rounds,
            "value": _number(report.selected[run.directory]),
            "error": run.error,
            "changed": {key: value for key, value in sorted(each.items(), key=place) if key not in base},
        }
        for (label, replicate, run), each in zip(runs, facts, strict=True)
    ]
    return {"base": base, "runs": rows}


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def _facts(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """Yield the flat fields of a run's record: its config, and all others without its numbers."""
    yield from leaves(run.record.get("config", {}))
    others = {name: value for name, value in run.record.items() if name not in ("config", "result", "format")}
    for name, value in leaves(others):
        yield f"run: {name}", value
