"""Which figures a report has: their data, looks and captions."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.dotted_keys import leaves
from fedresearch.drawings import curves, forest, heat_map, sensitivity, spread, trajectories
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.runs.columns import larger_is_better
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names, experiment_label, in_a_sentence, key_title, without_unit
from fedresearch.runs.loaded import evaluated_metrics
from fedresearch.runs.pictures import class_counts, confusion_picture, partition_picture
from fedresearch.study.report.arms import COLOURS, DASHES, MARKERS, Arm, Arrangement, option_labels
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.final import baseline_name
from fedresearch.study.report.levels import in_order, levels
from fedresearch.study.report.load import LoadedRun
from fedresearch.study.report.looks import MAX_DRAWN, looks, numbers, page
from fedresearch.study.report.outcomes import LEFT_OUT, Outcome
from fedresearch.study.report.overall import overall_figures
from fedresearch.study.report.plot_data import (
    class_accuracies,
    client_quantiles,
    client_spread,
    client_trajectories,
    confusion,
    mean_curve,
    numeric_keys,
    plotted_runs,
    seed_curves,
    sensitivity_lines,
)
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import paired, t_half_widths
from fedresearch.study.report.tables import over_seeds

MAX_PANELS = 12
_MAX_SEEDS = 5  # more thin lines than these hide the mean
_MAX_SEED_PANELS = 6
_MAX_PICTURES = 6
_PANEL_WIDTHS = (1.0, 2.4)  # inches, the least and the most
_FEW_CLASSES = 5  # whose numbers fit in a column of a venue
_MOST_DOWN = 4  # rows of a grid that fits on a page
_MAX_LINES = 30  # clients with a line of their own
_PERCENTILES = (0.1, 0.5, 0.9)
# What a partition depends on besides the seeds, along with the keys below the first two.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes")


def figures(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the name and the picture of each figure.

    Parameters
    ----------
    outcomes : mapping
        By cell's label.
    """
    begun = [cell for cell in study.cells if plotted_runs(cell)]
    if begun:
        yield from _curves(study, begun, question, arrangement)
    yield from _differences(study, question, outcomes, arrangement)
    yield from overall_figures(study, question, outcomes, arrangement)
    yield from _sensitivities(study, question, outcomes, arrangement)
    yield from _heat_maps(study, question, outcomes)
    yield from _spreads(study, question, begun, arrangement)
    yield from _client_quantiles(study, question, begun, arrangement)
    yield from _trajectories(study, question, begun, arrangement)
    yield from _updates(study, question, begun, arrangement)
    yield from _class_accuracies(question, begun, arrangement)
    yield from _confusions(question, begun, arrangement)
    yield from _partitions(study, question)


def _panels(
    cells: Sequence[Cell], arrangement: Arrangement
) -> tuple[list[str], dict[str, dict[str, Any]], list[Cell], str]:
    """Return the panels that are drawn, the arms in them, their cells, and a sentence on panels that are not drawn."""
    found = {arrangement.panel(cell) for cell in cells}
    panels = [panel for panel in arrangement.panels if panel in found]
    drawn = [cell for cell in cells if arrangement.panel(cell) in panels[:MAX_PANELS]]
    arms = {arrangement.arm(cell).label for cell in drawn}
    left_out = f" Not drawn: {'; '.join(panels[MAX_PANELS:])}." if len(panels) > MAX_PANELS else ""
    drawn_looks = looks([arm for arm in arrangement.arms if arm.label in arms])
    return panels[:MAX_PANELS], drawn_looks, drawn, left_out


def _curve_picture(
    study: Study,
    question: Question,
    cells: Sequence[Cell],
    arrangement: Arrangement,
    axis: str,
    metric: str,
    targets: Sequence[float] = (),
    *,
    with_seeds: bool = False,
) -> Picture:
    """Return the curves of a column over an axis, if asked with few seeds' own where there is room."""
    panels, arms, drawn, left_out = _panels(cells, arrangement)
    parts: list[dict[str, Any]] = []
    room, has_seeds = with_seeds and len(panels) <= _MAX_SEED_PANELS, False
    for cell in drawn:
        curve, arm = mean_curve(cell, axis, metric), arrangement.arm(cell)
        place = {"panel": arrangement.panel(cell), "arm": arm.label}
        parts.append(place | {"seed": "", "x": curve.x, "y": curve.mean, "low": curve.low, "high": curve.high})
        if room and arm.is_highlighted and 1 < len(plotted_runs(cell)) <= _MAX_SEEDS:
            has_seeds = True
            for seed, x, y in seed_curves(cell, axis, metric):
                parts.append(place | {"seed": seed, "x": x, "y": y, "low": math.nan, "high": math.nan})
    spec = {
        "panels": panels,
        "arms": arms,
        "x_label": AXES[axis].label,
        "x_unit": "B" * (axis == "bytes"),
        **numbers(study, question, metric),
        "unseen": 0.05,
        "targets": [*targets],
        **page(question, len(panels)),
    }
    by = in_a_sentence(AXES[axis].label)
    caption = f"{without_unit(spec['y_label'])} by {by}: {_mean_caption(drawn)}{' Thin lines are seeds.' * has_seeds}"
    data = concatenated(parts, ("panel", "arm", "seed", "x", "y", "low", "high"))
    caption += _cut_caption(data, spec["unseen"]) + left_out
    ended = [cell for cell in study.cells if all(run.state in LEFT_OUT for run in cell.runs.values())]
    if ended:
        names = "; ".join(_name(cell, arrangement) for cell in ended)
        caption += f" No curve, as all runs failed, diverged or stalled: {names}."
    return Picture(curves, data, spec, caption)


def _mean_caption(cells: Sequence[Cell]) -> str:
    """Return the runs that curves are the means of."""
    runs = [plotted_runs(cell) for cell in cells]
    counts = [len(of_cell) for of_cell in runs]
    under_way = any(run.state != "finished" for of_cell in runs for run in of_cell)
    text = "mean over " * (max(counts) > 1) + over_seeds(counts)
    text += " (of runs under way where none is finished)" * under_way
    return f"{text}{', with the 95 % t-interval as a band' * (max(counts) > 1)}."


def _cut_caption(data: Mapping[str, Any], unseen: float) -> str:
    """Return a sentence where means in the unseen share of the way are beyond all later ones."""
    x, y, is_mean = data["x"], data["y"], np.array([not seed for seed in data["seed"]])
    known = is_mean & np.isfinite(x) & np.isfinite(y)
    is_early = known & (x <= unseen * np.max(x[known], initial=0))
    early, later = y[is_early], y[known & ~is_early]
    is_beyond = len(early) and len(later) and (early.min() < later.min() or early.max() > later.max())
    return f" The y axis may leave out the first {unseen:.0%} of the way.".replace("%", " %") if is_beyond else ""


def _curves(
    study: Study, cells: Sequence[Cell], question: Question, arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    for axis in dict.fromkeys((question.x_axis, "bytes", *["steps"] * _steps_differ(cells, arrangement))):
        picture = _curve_picture(
            study, question, cells, arrangement, axis, question.metric, question.targets, with_seeds=True
        )
        yield f"curves_{axis}", picture


def _steps_differ(cells: Sequence[Cell], arrangement: Arrangement) -> bool:
    """Return whether arms of a panel take different numbers of local steps in a round."""
    paces: dict[str, list[float]] = {}
    for cell in cells:
        run = plotted_runs(cell)[0]
        paces.setdefault(arrangement.panel(cell), []).append(AXES["steps"].progress(run)[-1] / max(1, run.num_rounds))
    known = [np.array(pace)[np.isfinite(pace)] for pace in paces.values()]
    return any(len(pace) and pace.max() > 1.1 * pace.min() for pace in known)


def _updates(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield how far updates move the model, and how far clients agree on the way."""
    for column in ("update/norm", "update/cosine"):
        if any(np.isfinite(run.column(column)).any() for cell in cells for run in plotted_runs(cell)):
            yield (
                column.replace("/", "_"),
                _curve_picture(study, question, cells, arrangement, "rounds", column),
            )


def _client_metric(question: Question) -> str:
    """Return the column of the clients' table that goes with the metric."""
    scope, _, measure = question.metric.partition("/")
    return question.metric if scope == "personal" else f"clients/{measure.partition('_')[0]}"


def _client_quantiles(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    metric = _client_metric(question)
    found = {cell.label: curve for cell in cells if (curve := client_quantiles(cell, metric))}
    panels, arms, drawn, left_out = _panels([cell for cell in cells if cell.label in found], arrangement)
    if not drawn:
        return
    parts = [
        {"panel": arrangement.panel(cell), "arm": arrangement.arm(cell).label, "seed": "", "x": curve.x}
        | {"y": curve.mean, "low": curve.low, "high": curve.high}
        for cell, curve in ((cell, found[cell.label]) for cell in drawn)
    ]
    spec = {
        "panels": panels,
        "arms": arms,
        "x_label": "Clients at or below (%)",
        "x_unit": "",
        **numbers(study, question, metric),
        "unseen": 0,
        "targets": [],
        **page(question, len(panels)),
    }
    caption = (
        f"{without_unit(spec['y_label'])} of each client in the last evaluation, clients sorted: mean over seeds, with "
        f"the 95 % t-interval as a band.{left_out}"
    )
    data = concatenated(parts, ("panel", "arm", "seed", "x", "y", "low", "high"))
    yield "clients", Picture(curves, data, spec, caption)


def _trajectories(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield each client's metric over the rounds, in the first run of the first few cells with a highlighted arm."""
    metric = _client_metric(question)
    chosen = [cell for cell in _in_order(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found = [(cell, own) for cell in chosen[:MAX_PANELS] if (own := client_trajectories(cell, metric))]
    if not found:
        return
    parts: list[dict[str, Any]] = []
    for cell, (rounds, values) in found:
        place = {"panel": _name(cell, arrangement), "arm": arrangement.arm(cell).label, "x": rounds}
        low, middle, high = np.nanquantile(values, _PERCENTILES, axis=1)
        parts.append(place | {"client": math.nan, "y": middle, "low": low, "high": high})
        for client, line in enumerate(values.T[:_MAX_LINES]):
            parts.append(place | {"client": client, "y": line, "low": math.nan, "high": math.nan})
    panels = [*dict.fromkeys(part["panel"] for part in parts)]
    num_clients = max(values.shape[1] for _, (_, values) in found)
    spec = {
        "panels": panels,
        "arms": looks(arrangement.arms),
        "x_label": AXES["rounds"].label,
        **numbers(study, question, metric),
        **_panels_of_cells(question, [cell for cell, _ in found], arrangement),
    }
    some = f" The first {_MAX_LINES} clients have lines." * (num_clients > _MAX_LINES)
    caption = (
        f"{without_unit(spec['y_label'])} by round in the first run of each cell: thin lines are clients, the thick "
        f"line is their median, and the band has the middle 80 % of them.{some}{_not_drawn(len(chosen), arrangement)}"
    )
    data = concatenated(parts, ("panel", "arm", "client", "x", "y", "low", "high"))
    yield "trajectories", Picture(trajectories, data, spec, caption)


def _panels_of_cells(question: Question, cells: Sequence[Cell], arrangement: Arrangement) -> dict[str, Any]:
    """Return a figure's width and font, and how cells' panels stand in it: as a grid of arms and settings that fits.

    A column of the venue is wide enough for few panels, and no panel is wider than it must be.
    """
    drawn = page(question, len(cells))
    across, down = (
        [*dict.fromkeys(name(cell) for cell in cells)]
        for name in (lambda cell: arrangement.arm(cell).label, arrangement.panel)
    )
    is_whole = len(across) > 1 and len(down) > 1 and len(cells) == len(across) * len(down)
    if is_whole and len(across) < len(down) <= drawn["width"] / _PANEL_WIDTHS[0]:
        across, down = down, across
        cells = [cell for number in range(len(down)) for cell in cells[number :: len(down)]]
    shape = {**drawn, "panels": [_name(cell, arrangement) for cell in cells], "columns": None, "grid": None}
    least, most = (len(across) * width for width in _PANEL_WIDTHS)
    if len(across) == 1 or len(down) > _MOST_DOWN or least > drawn["width"]:
        return shape
    column = page(question)["width"]
    width = min(column if least <= column else drawn["width"], most)
    return {
        **shape,
        "width": width,
        "columns": len(across),
        "grid": {"across": across, "down": down} if is_whole else None,
    }


def _not_drawn(num_cells: int, arrangement: Arrangement, most: int = MAX_PANELS) -> str:
    """Return sentences on the cells that a figure leaves out: more than ``most`` of its own, and those of grey arms."""
    grey = [arm.label for arm in arrangement.arms if not arm.is_highlighted]
    excess = f" {num_cells - most} more cells are not drawn." * (num_cells > most)
    return excess + f" Without the arms that are not highlighted: {'; '.join(grey)}." * bool(grey)


def _in_order(cells: Sequence[Cell], arrangement: Arrangement) -> list[Cell]:
    """Return cells by their panels, and then by their arms."""
    return sorted(cells, key=lambda cell: arrangement.places[cell.label])


def _name(cell: Cell, arrangement: Arrangement) -> str:
    """Return a cell's arm and panel in words."""
    return ", ".join(filter(None, (arrangement.arm(cell).label, arrangement.panel(cell)))) or "all runs"


def _differences(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield what each arm gains over the baseline, on shared seeds."""
    partners = question.baseline.partners
    parts: list[dict[str, Any]] = []
    for cell in study.cells:
        if cell.label in partners:
            values, others = outcomes[cell.label].values, outcomes[partners[cell.label].label].values
            shared = [seed for seed in values if seed in others]
            pair = paired([values[seed] for seed in shared], [others[seed] for seed in shared])
            place = {"panel": arrangement.panel(cell), "arm": arrangement.arm(cell).label}
            parts.append(place | {"difference": pair.mean, "half_width": pair.half_width, "n": pair.n})
    if not any(math.isfinite(part["difference"]) for part in parts):
        return
    panels, arms, _, left_out = _panels([cell for cell in study.cells if cell.label in partners], arrangement)
    baseline = baseline_name(study, question)
    shown = numbers(study, question, question.metric)
    label = without_unit(shown["y_label"])
    spec = {
        "panels": panels,
        "arms": arms,
        "x_label": f"{label} − {baseline}'s{' (percentage points)' * (shown['scale'] == 100)}",
        "y_label": "",
        "scale": shown["scale"],
        **page(question, len(panels)),
    }
    caption = f"{question.selection.caption}: differences to {baseline} on shared seeds, with their 95 % t-interval."
    kept = [part for part in parts if part["panel"] in panels]
    yield (
        "differences",
        Picture(
            forest, concatenated(kept, ("panel", "arm", "difference", "half_width", "n")), spec, caption + left_out
        ),
    )


def _spreads(
    study: Study, question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    metrics = dict.fromkeys(name for run in study.runs for name in evaluated_metrics(run.record) if name != "loss")
    cells = _in_order(cells, arrangement)
    for metric in metrics:
        for prefix, models in (("clients", "the global model on clients"), ("personal", "clients' own models")):
            column = f"{prefix}/{metric}"
            tenth = "p10" if larger_is_better(column, study.declared) else "p90"
            spreads = [(cell, found) for cell in cells if (found := client_spread(cell, column, tenth))]
            if spreads:
                parts = [
                    {"row": _name(cell, arrangement)}
                    | {"mean": found.mean, "std": found.std, "tenth": found.p10, "worst": found.worst}
                    for cell, found in spreads[:MAX_DRAWN]
                ]
                shown = numbers(study, question, column)
                spec = {
                    "x_label": shown["y_label"],
                    "scale": shown["scale"],
                    "limits": shown["limits"],
                    "title": _excess(len(spreads)),
                    **page(question),
                }
                caption = (
                    f"{metric} of {models} after the last round that has it: mean, standard deviation, "
                    f"{tenth[1:]}th percentile and worst over the clients, each a mean over seeds."
                )
                data = concatenated(parts, ("row", "mean", "std", "tenth", "worst"))
                yield f"{prefix}_{metric}", Picture(spread, data, spec, caption[0].upper() + caption[1:])


def _excess(num_all: int) -> str | None:
    """Return the legend's title where not all lines or cells are drawn."""
    return f"{MAX_DRAWN} of {num_all} drawn" if num_all > MAX_DRAWN else None


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
            "title": _excess(len(lines)),
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


def _class_accuracies(
    question: Question, cells: Sequence[Cell], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the accuracy on each class of the first few cells with a highlighted arm."""
    chosen = [cell for cell in _in_order(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found = [(cell, own) for cell in chosen if (own := class_accuracies(cell)) is not None]
    if not found:
        return
    parts = [
        {"row": _name(cell, arrangement), "col": str(number), "value": mean, "half_width": half_width}
        for cell, shares in found[:MAX_DRAWN]
        for number, (mean, half_width) in enumerate(zip(shares.mean(axis=0), t_half_widths(shares), strict=True))
    ]
    spec = {"row_label": "", "col_label": "Class", "title": "Test accuracy on each class (%)", "scale": 100}
    caption = "Accuracy of the final models on the test samples of each class: mean over seeds."
    caption += _not_drawn(len(found), arrangement, MAX_DRAWN)
    data = concatenated(parts, ("row", "col", "value", "half_width"))
    width = page(question, len({*data["col"]}) // _FEW_CLASSES + 1)
    yield "class_accuracy", Picture(heat_map, data, {**spec, **width}, caption)


def _confusions(question: Question, cells: Sequence[Cell], arrangement: Arrangement) -> Iterator[tuple[str, Picture]]:
    """Yield the confusion matrices of the first few cells with a highlighted arm, for each number of classes."""
    chosen = [cell for cell in _in_order(cells, arrangement) if arrangement.arm(cell).is_highlighted]
    found: dict[int, list[tuple[Cell, NDArray[np.int64]]]] = {}
    for cell in chosen:
        counts = confusion(cell)
        if counts is not None:
            found.setdefault(len(counts), []).append((cell, counts))
    for num_classes, of_size in found.items():
        drawn = of_size[:MAX_PANELS]
        shape = _panels_of_cells(question, [cell for cell, _ in drawn], arrangement)
        caption = (
            "What the final models take the test samples of each class for, over all seeds together: shares of each "
            f"true class (%), where they round to 1 or more.{_not_drawn(len(of_size), arrangement)}"
        )
        picture = confusion_picture({_name(cell, arrangement): counts for cell, counts in drawn}, caption, shape)
        yield f"confusion{f'_{num_classes}' * (len(found) > 1)}", picture


def _partitions(study: Study, question: Question) -> Iterator[tuple[str, Picture]]:
    """Yield the first few different partitions, each that of the first seed of a cell."""
    plotted: set[Any] = set()
    for cell in study.cells:
        replicate, run = next(iter(cell.runs.items()))
        digest = run.record.get("partition_sha256")
        counts = class_counts(run.directory) if digest not in plotted and len(plotted) < _MAX_PICTURES else None
        if counts is not None:
            plotted.add(digest)
            title = ", ".join(_partition_settings(study, question, cell, run, replicate))
            yield f"partition_{len(plotted)}", partition_picture(counts, title, page(question))


def _partition_settings(study: Study, question: Question, cell: Cell, run: LoadedRun, replicate: str) -> Iterator[str]:
    """Yield what a partition depends on, among what distinguishes cells."""
    told = {
        key: value
        for key, value in cell.keys.items()
        if key in _PARTITION or key.startswith(("dataset.", "partitioner."))
    }
    if told:
        yield experiment_label(told, option_labels(cell), question.names)
    if dict(leaves(run.record["config"])).get("strategy.pooled"):
        yield "pooled"
    yield replicate if "=" in replicate else f"seed {replicate}"
