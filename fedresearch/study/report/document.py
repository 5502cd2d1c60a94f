"""A report as the JSON values that its page reads."""

import base64
import io
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fedresearch.dotted_keys import leaves
from fedresearch.runs.columns import is_share
from fedresearch.runs.directory import now
from fedresearch.runs.loaded import usual_metrics
from fedresearch.runs.pictures import MAX_CLIENTS, class_counts
from fedresearch.study.report.arms import COLOURS, GREY, Arm, label_cells
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.build import Report
from fedresearch.study.report.cells import Cell
from fedresearch.study.report.load import Column, LoadedRun
from fedresearch.study.report.plot_data import mean_curve, mean_progress, plotted_runs
from fedresearch.study.report.tables import Table

# The same hues on a dark background.
_IN_DARK = dict(
    zip(
        (*COLOURS, GREY),
        ("#3D94D9", "#F07F2E", "#1FBF91", "#E09AC1", "#F2B632", "#9BD8FF", "#E4E8ED", "#6B7480"),
        strict=True,
    )
)
_LINE_WIDTH = 2
_ONLY = "all runs"  # the name of the only arm where its runs have several strategies
_MAX_COUNTS = 100_000  # of all partitions on the page; they take about a byte each
# Figures that the page draws itself.
_DRAWN = ("curves_", "update_")


def document(report: Report, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a report as the page reads it.

    Parameters
    ----------
    pictures : mapping
        Name of a figure to its PNG.
    """
    study, metric, names = report.study, report.question.metric, report.question.names
    labels = label_cells(study, study.keys, names)
    labels = {cell.label: labels[cell.label] or report.arrangement.arm(cell).label for cell in study.cells}
    cells = [cell for cell in study.cells if plotted_runs(cell)]
    usual = dict.fromkeys([metric, *usual_metrics(study.runs), "train/loss", "update/norm", "update/cosine"])
    metrics = [name for name in usual if any(name in run.columns for run in study.runs)]
    return {
        "title": report.title,
        "metric": study.column_label(metric, names),
        "axis": report.question.x_axis,
        "command": _command(),
        "generated": _minute(),
        "warnings": [*report.warnings],
        "notes": [*report.notes],
        "axes": [{"id": name, "label": axis.label.capitalize()} for name, axis in AXES.items()],
        "metrics": [
            {"id": name, "label": study.column_label(name, names), "is_share": is_share(name, study.declared)}
            for name in metrics
        ],
        "targets": [{"metric": metric, "value": target} for target in report.question.targets],
        "arms": [
            _arm(arm, [len(plotted_runs(cell)) for cell in cells if report.arrangement.arm(cell) is arm])
            for arm in report.arrangement.arms
        ],
        "panels": [*report.arrangement.panels],
        "cells": [_cell(cell, labels[cell.label], report.arrangement.places[cell.label], metrics) for cell in cells],
        "tables": [_table(table) for table in report.tables],
        "figures": [
            {
                "title": name.replace("_", " "),
                "caption": report.figures[name].caption,
                "src": f"data:image/webp;base64,{base64.b64encode(_small(picture)).decode()}",
            }
            for name, picture in pictures.items()
            if not name.startswith(_DRAWN)
        ],
        **_runs(report, labels),
    }


def waiting_document(why: str, runs: Sequence[LoadedRun]) -> dict[str, Any]:
    """Return what the page reads while there is no report, for a reason, of runs that have not begun or are running."""
    states = ", ".join(f"{number} {state}" for state, number in Counter(run.state for run in runs).items())
    lists = (
        "warnings",
        "axes",
        "metrics",
        "targets",
        "arms",
        "panels",
        "cells",
        "tables",
        "figures",
        "runs",
        "partitions",
    )
    return {
        **{"title": "Nothing to report yet", "metric": "", "axis": "", "command": _command(), "generated": _minute()},
        **{"notes": [why, f"Runs: {states}"], "base": {}},
        **{name: [] for name in lists},
    }


def _minute() -> str:
    """Return the time to the minute, for people."""
    return f"{now()[:16].replace('T', ' ')} UTC"


def _command() -> str:
    return shlex.join(["fedresearch", *sys.argv[1:]])


def _small(picture: bytes) -> bytes:
    """Return a PNG as WebP with few colours, in a fifth of its bytes.

    These are 8 greys, which get no hue; the 16 most frequent colours, exactly; and 32 for all other dots.
    """
    dots = np.array(Image.open(io.BytesIO(picture)).convert("RGB"))
    is_grey = (dots[..., 0] == dots[..., 1]) & (dots[..., 1] == dots[..., 2])
    greys = np.round(np.round(dots[is_grey, :1] * (7 / 255)) * (255 / 7))
    dots[is_grey] = 255
    colours, counts = np.unique(dots[~is_grey] @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    frequent = [
        *b"".join(int(colour).to_bytes(3, "big") for colour in colours[np.argsort(-counts, kind="stable")[:16]])
    ]
    others = Image.fromarray(dots).quantize(32, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*frequent, *others[: 3 * 32]])
    few = np.array(Image.fromarray(dots).quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB"))
    few[is_grey] = greys
    buffer = io.BytesIO()
    Image.fromarray(few).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _arm(arm: Arm, counts: Sequence[int]) -> dict[str, Any]:
    """Return an arm's look, and the fewest and most runs of its cells."""
    return {
        "label": arm.label or _ONLY,
        "colour": arm.colour,
        "dark": _IN_DARK[arm.colour],
        "dash": ",".join(f"{_LINE_WIDTH * length:g}px" for length in arm.dash) or "solid",
        "is_highlighted": arm.is_highlighted,
        "n": "–".join(str(count) for count in dict.fromkeys((min(counts, default=0), max(counts, default=0)))),
    }


def _cell(cell: Cell, label: str, place: tuple[int, int], metrics: Sequence[str]) -> dict[str, Any]:
    curves = {name: mean_curve(cell, "rounds", name) for name in metrics}
    return {
        "label": label,
        "panel": place[0],
        "arm": place[1],
        "n": len(plotted_runs(cell)),
        "x": {name: _column(mean_progress(cell, name)) for name in AXES},
        "y": {
            name: {"mean": _column(curve.mean), "half_width": _column(curve.high - curve.mean)}
            for name, curve in curves.items()
        },
    }


def _column(values: Column) -> list[float | None]:
    """Return numbers to the five digits that the page writes, with null for those that are not finite."""
    is_known = np.isfinite(values)
    known = np.where(is_known, values, 0.0)
    places = 4 - np.floor(np.log10(np.abs(known), out=np.zeros(len(known)), where=known != 0))
    places = np.clip(places, -300, 300)  # the largest numbers must not become infinite
    up, down = 10.0 ** np.maximum(-places, 0), 10.0 ** np.maximum(places, 0)
    rounded = (np.round(known / up * down) / down * up).tolist()
    return (
        rounded
        if is_known.all()
        else [value if known else None for value, known in zip(rounded, is_known.tolist(), strict=True)]
    )


def _table(table: Table) -> dict[str, Any]:
    return {
        "id": table.id,
        "title": table.title,
        "caption": table.caption,
        "notes": [*table.notes],
        "columns": [
            {"label": label, "numeric": numeric}
            for (label, _), numeric in zip([*table.head_rows][-1], table.numeric, strict=True)
        ],
        "groups": [*table.head_rows][:-1],
        "rows": [[vars(entry) for entry in row] for row in table.rows],
    }


def _runs(report: Report, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return all runs, with their cells' labels, and separately what their configs and records have in common."""
    keys = report.study.keys

    def place(pair: tuple[str, Any]) -> int:
        """Sort keys that distinguish cells first, then other options and keys of the config, then the record's."""
        key = pair[0]
        return keys.index(key) if key in keys else len(keys) + key.startswith("run: ")

    runs = [(cell.label, replicate, run) for cell in report.study.cells for replicate, run in cell.runs.items()]
    runs += [("", "", run) for run in (*report.study.repeated, *report.study.unread)]
    places = {(label, replicate): number for number, (label, replicate, _) in enumerate(runs)}
    metric, partners = report.question.metric, report.question.baseline.partners
    percent = report.study.scale(metric)
    facts = [dict(_facts(run)) for _, _, run in runs]
    recorded = [each for each in facts if each]
    base = {
        key: value
        for key, value in (recorded[0] if recorded else {}).items()
        if all(key in each and type(each[key]) is type(value) and each[key] == value for each in recorded)
    }
    partitions = _partitions([run for _, _, run in runs])
    numbers = {digest: number for number, digest in enumerate(partitions)}
    rows = [
        {
            "directory": str(run.directory),
            "cell": labels.get(label, ""),
            "seed": replicate,
            "state": run.state,
            "rounds": run.num_rounds,
            "value": _number(percent * report.selected[run.directory]),
            "error": run.error,
            "failures": int(np.nansum(run.column("clients/failed"))),
            "x": _column(run.column("round")),
            "y": _column(run.column(metric)),
            "baseline": places.get((partners[label].label, replicate)) if label in partners else None,
            "partition": numbers[digest] if (digest := run.record.get("partition_sha256")) in numbers else None,
            "changed": {key: value for key, value in sorted(each.items(), key=place) if key not in base},
        }
        for (label, replicate, run), each in zip(runs, facts, strict=True)
    ]
    return {"base": base, "runs": rows, "partitions": [*partitions.values()]}


def _partitions(runs: Sequence[LoadedRun]) -> dict[str, list[list[int]]]:
    """Return the first different partitions by their digests: the samples of each class on each client."""
    partitions: dict[str, list[list[int]]] = {}
    room = _MAX_COUNTS
    for run in runs:
        digest = run.record.get("partition_sha256")
        if digest and digest not in partitions:
            counts = class_counts(run.directory)
            shown = None if counts is None else counts[:MAX_CLIENTS]
            if shown is not None and shown.size <= room:
                partitions[digest] = shown.tolist()
                room -= shown.size
    return partitions


def _number(value: float) -> str:
    return f"{value:#.4g}".removesuffix(".") if math.isfinite(value) else ""


def _facts(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """Yield the flat fields of a run's record: its options by group, its config, and all others but numbers.

    What options declare is left out: it follows from them.
    """
    yield from run.record.get("choices", {}).items()
    yield from ((key, value) for key, value in leaves(run.record.get("config", {})) if ".declares." not in key)
    elsewhere = {"choices", "config", "result", "format", "columns"}
    for name, value in leaves({name: value for name, value in run.record.items() if name not in elsewhere}):
        yield f"run: {name}", value
