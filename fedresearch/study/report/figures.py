"""Which figures a report has. Here are those of arms over a run, and of their differences to the baseline."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedresearch.drawings import curves, forest
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.runs.labels import in_a_sentence, without_unit
from fedresearch.study.report.arms import Arrangement
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.client_figures import client_figures
from fedresearch.study.report.final import baseline_name
from fedresearch.study.report.key_figures import key_figures
from fedresearch.study.report.looks import cell_name, drawn_panels, numbers, page
from fedresearch.study.report.outcomes import LEFT_OUT, Outcome
from fedresearch.study.report.overall import overall_figures
from fedresearch.study.report.plot_data import (
    mean_curve,
    plotted_runs,
    seed_curves,
)
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import paired
from fedresearch.study.report.tables import over_seeds

_MAX_SEEDS = 5  # more thin lines than these hide the mean
_MAX_SEED_PANELS = 6


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
    yield from key_figures(study, question, outcomes, arrangement)
    yield from client_figures(study, question, begun, arrangement)
    yield from _updates(study, question, begun, arrangement)


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
    panels, arms, drawn, left_out = drawn_panels(cells, arrangement)
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
        names = "; ".join(cell_name(cell, arrangement) for cell in ended)
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
    panels, arms, _, left_out = drawn_panels([cell for cell in study.cells if cell.label in partners], arrangement)
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
