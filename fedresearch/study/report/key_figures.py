"""The figures of a metric by the values of keys: sensitivities and heat maps."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from fedresearch.drawings import heat_map, sensitivity
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names, experiment_label, in_a_sentence, key_title
from fedresearch.study.report.arms import COLOURS, DASHES, MARKERS, Arm, Arrangement, option_labels
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.levels import in_order, levels
from fedresearch.study.report.looks import (
    MAX_DRAWN,
    excess,
    looks,
    numbers,
    page,
)
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.plot_data import (
    numeric_keys,
    sensitivity_lines,
)
from fedresearch.study.report.question import Question

_MAX_PICTURES = 6


def key_figures(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the name and the picture of each figure of the metric by one key, or by two.

    Parameters
    ----------
    outcomes : mapping
        By cell's label.
    """
    yield from _sensitivities(study, question, outcomes, arrangement)
    yield from _heat_maps(study, question, outcomes)


def _sensitivities(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    for key in (key for key in numeric_keys(study, 3) if key not in question.tuned):
        lines = sensitivity_lines(study, key, question, outcomes, arrangement)
        if not any(np.isfinite(line.mean).any() for line in lines):
            continue
        of_lines = looks(arrangement.arms)
        if not {line.label for line in lines} <= of_lines.keys():
            of_lines = looks([_numbered(line.label, number) for number, line in enumerate(lines)])
        parts = [
            {"arm": line.label, "x": line.values, "y": line.mean, "half_width": line.half_width}
            for line in lines[:MAX_DRAWN]
        ]
        spec = {
            "arms": {line.label: of_lines[line.label] for line in lines[:MAX_DRAWN]},
            "x_label": f"{key_title(key, question.names)}{_owner(study, key)}",
            **numbers(study, question, question.metric),
            "title": excess(len(lines)),
            **page(question),
        }
        by = in_a_sentence(spec["x_label"])
        caption = f"{question.selection.caption}, by {by}: mean over seeds, with the 95 % t-interval as bars."
        picture = Picture(sensitivity, concatenated(parts, ("arm", "x", "y", "half_width")), spec, caption)
        yield f"sensitivity_{_file_name(study.short_name(key))}", picture


def _owner(study: Study, key: str) -> str:
    """Return the option that a key belongs to, as " of NAME", where other options do not have the key."""
    owners = [cell for cell in study.cells if key in cell.keys]
    names = {option_labels(cell).get(key.partition(".")[0], "").partition(" (")[0] for cell in owners}
    return f" of {name}" if len(owners) < len(study.cells) and len(names) == 1 and (name := names.pop()) else ""


def _numbered(label: str, number: int) -> Arm:
    """Return a look for a line that is not an arm; of 16, marker with filling is unique, and colour with dash.

    The colours that arms have last come first.
    """
    colour, dash = COLOURS[-1 - number % len(COLOURS)], DASHES[number % len(DASHES)]
    return Arm(label, colour, dash, MARKERS[number % len(MARKERS)], is_highlighted=number < len(MARKERS))


def _file_name(key: str) -> str:
    """Return a key as part of a file's name, with its digest where it is long or has other characters."""
    name = re.sub(r"[^\w.-]", "_", key, flags=re.ASCII)[:80]
    return name if name == key else f"{name}_{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"


def _heat_maps(study: Study, question: Question, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, Picture]]:
    """Yield the heat maps of the two keys that are asked for, or vary alone; or else of each two keys with numbers."""
    untuned = [key for key in study.keys if key not in question.tuned]
    grid = [key for keys in question.grid or [untuned] for key in keys]
    if len(grid) == 2:
        yield from _heat_maps_of(study, question, outcomes, "heat_map", *grid)
        return
    for rows, cols in combinations([key for key in numeric_keys(study, 2) if key in untuned], 2):
        name = f"heat_map_{_file_name(f'{study.short_name(rows)}_{study.short_name(cols)}')}"
        yield from _heat_maps_of(study, question, outcomes, name, rows, cols)


def _heat_maps_of(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], name: str, rows: str, cols: str
) -> Iterator[tuple[str, Picture]]:
    """Yield a heat map for each of the first few combinations of the other keys in which both keys vary."""
    other_keys = study.other_keys((rows, cols), question.tuned)
    groups = [key.partition(".")[0] for key in (rows, cols)]  # their options' labels have one cell's numbers
    cells = [cell for cell in study.cells if rows in cell.keys and cols in cell.keys]
    of_rows, of_cols = (_value_labels(study, cells, key, question.names) for key in (rows, cols))
    grids: dict[str, dict[tuple[str, str], Outcome]] = {}
    for cell in cells:
        others = {key: value for key, value in cell.keys.items() if key in other_keys}
        options = {
            group: label.partition("(")[0].strip() if group in groups else label
            for group, label in option_labels(cell).items()
        }
        label = experiment_label(others, options, question.names)
        grids.setdefault(label, {})[of_rows[cell.label], of_cols[cell.label]] = outcomes[cell.label]
    shown = numbers(study, question, question.metric)
    for count, (label, grid) in enumerate([*grids.items()][:_MAX_PICTURES], start=1):
        downs, acrosses = (
            [text for text in dict.fromkeys(labels.values()) if any(place[side] == text for place in grid)]
            for side, labels in enumerate((of_rows, of_cols))
        )
        if not any(outcome.values for outcome in grid.values()) or (other_keys and 1 in (len(downs), len(acrosses))):
            continue
        parts = [
            {"row": down, "col": across, "value": math.nan, "half_width": math.nan}
            if (down, across) not in grid
            else {"row": down, "col": across, "value": grid[down, across].mean}
            | {"half_width": grid[down, across].half_width}
            for down in downs
            for across in acrosses
        ]
        titles = [key_title(key, question.names) for key in (rows, cols)]
        spec = {
            "row_label": titles[0],
            "col_label": titles[1],
            "title": f"{shown['y_label']}{', ' * bool(label)}{label}",
            "scale": shown["scale"],
            **page(question),
        }
        setting = f", of {label}" if label else ""
        caption = (
            f"{question.selection.caption}, by {' and '.join(map(in_a_sentence, titles))}{setting}: mean over seeds ± "
            "half the 95 % t-interval; the colour is the mean."
        )
        picture = Picture(heat_map, concatenated(parts, ("row", "col", "value", "half_width")), spec, caption)
        yield f"{name}{f'_{count}' if len(grids) > 1 else ''}", picture


def _value_labels(study: Study, cells: Sequence[Cell], key: str, names: Names) -> dict[str, str]:
    """Return what tables call a key's value in each of some cells, in the order of the values.

    An option's label is without its numbers where these vary, if no other value has the same label then.
    """
    (level,) = levels(study, [key], names)
    found: dict[str, set[str]] = {}
    for cell in cells:
        found.setdefault(format_value(cell.keys[key]), set()).add(level.entries[cell.label].text)
    short = {
        value: min(texts).partition("(")[0].strip() if len(texts) > 1 else min(texts) for value, texts in found.items()
    }
    texts = {value: text if [*short.values()].count(text) == 1 else value for value, text in short.items()}
    return {cell.label: texts[format_value(cell.keys[key])] for cell in in_order(cells, [level])}
