"""Curves of arms, a panel for each setting: means with their intervals as bands, and thin single seeds behind.

Data: ``panel, arm, seed, x, y, low, high``; a row without a seed is of the mean.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from fedresearch.drawings.paper import (
    CHARACTER,
    LINE,
    Data,
    Spec,
    add_legend,
    apart,
    groups,
    lay_out,
    line_style,
    new_panels,
    num_characters,
    styled,
)

_MAX_NAMED = 3  # grey arms that a legend names, which look alike


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data.

    ``spec`` has ``panels``; ``arms``, by label, the first on top, but dashes above whole lines, which show between
    them; ``x_label`` and ``y_label``; ``x_unit`` at the numbers; ``scale`` of y, 100 for per cent; ``limits`` of what y
    can be, None where it has none; ``unseen``, the first share of x that need not be seen; ``targets`` to mark;
    ``width`` and ``font``.
    """
    figure, panels = new_panels(spec)
    lines = groups(data, "panel", "arm", "seed")
    seeds = [*dict.fromkeys(data["seed"])]
    x = data["x"]
    y, low, high = (spec["scale"] * data[name] for name in ("y", "low", "high"))
    bounds = _bounds(y, spec)
    for axes, panel in zip(panels, spec["panels"], strict=True):
        axes.autoscale(enable=False)  # looks at all panels anew for each band
        for number, (arm, look) in reversed([*enumerate(spec["arms"].items())]):
            height = len(spec["arms"]) - number if look["is_highlighted"] else 0
            for seed in (seed for seed in seeds if (panel, arm, seed) in lines):
                rows = np.array(lines[panel, arm, seed])
                rows = rows[np.isfinite(x[rows]) & np.isfinite(y[rows])]
                if seed:
                    axes.plot(x[rows], y[rows], color=look["colour"], linewidth=0.5, alpha=0.3, zorder=1.5)
                    continue
                if look["is_highlighted"] and np.isfinite(low[rows]).any():
                    band = np.clip(low[rows], *bounds), np.clip(high[rows], *bounds)
                    axes.fill_between(x[rows], *band, color=look["colour"], alpha=0.12, linewidth=0, zorder=1.2)
                step = 1 + len(rows) // 6  # about six markers a line, at different rounds for each arm
                every = (number * step // len(spec["arms"]), step)
                width = 1.3 if look["is_highlighted"] else 0.7
                above = 2 + 0.01 * height + 0.5 * bool(look["dash"])
                axes.plot(x[rows], y[rows], markevery=every, linewidth=width, zorder=above, **line_style(look))
        for target in spec["targets"]:
            axes.axhline(spec["scale"] * target, color="0.4", linestyle=(0, (2, 2)), linewidth=0.9, zorder=1.9)
    _limit(panels, data, (y, low, high), bounds, spec)
    _name(figure, panels, data["x"], y, lines, spec)
    return figure


def _bounds(y: Any, spec: Spec) -> tuple[float, float]:
    """Return what y can be: nothing is known where a number is beyond what was said."""
    low, high = spec["limits"]
    low, high = (-np.inf if low is None else spec["scale"] * low), (np.inf if high is None else spec["scale"] * high)
    known = y[np.isfinite(y)]
    return (low, high) if ((known >= low) & (known <= high)).all() else (-np.inf, np.inf)


def _limit(panels: list[Axes], data: Data, columns: Any, bounds: tuple[float, float], spec: Spec) -> None:
    """Set the axes' ends: means beyond the unseen share of x, and seeds and bands beyond ten times that."""
    axes, (y, low, high) = panels[0], columns
    x, is_mean = data["x"], np.array([not seed for seed in data["seed"]])
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return
    last = x[known].max()
    late = known & ((x > spec["unseen"] * last) | (x == last) | (spec["unseen"] == 0))
    later = late & (x >= 10 * spec["unseen"] * last)
    seen = [y[late & is_mean], y[later], *(band[later & np.isfinite(band)] for band in (low, high))]
    values = np.concatenate([*seen, [spec["scale"] * target for target in spec["targets"]]])
    bottom, top = np.clip([values.min(), values.max()], *bounds)
    margin = 0.04 * (top - bottom) or 0.04 * abs(top) or 1.0
    room = 0.02 * (bounds[1] - bounds[0]) if np.isfinite(bounds).all() else 0.0
    axes.set_ylim(max(bottom - margin, bounds[0] - room), min(top + margin, bounds[1] + room))
    is_whole = (np.mod(x[known], 1) == 0).all()
    first = x[known].min()
    axes.set_xlim(first, last if last > first else first + 1)
    for each in panels:
        each.locator_params(axis="x", integer=is_whole, min_n_ticks=1, nbins=5 if len(panels) > 1 else 8)
        if spec["x_unit"]:
            each.xaxis.set_major_formatter(EngFormatter(unit=spec["x_unit"], sep=" "))


def _name(
    figure: Figure, panels: list[Axes], x: Any, y: Any, lines: dict[tuple[str, ...], list[int]], spec: Spec
) -> None:
    """Write each arm's name at its line's end if there is one panel with room, or else in a legend below."""
    shown = {arm: look for arm, look in spec["arms"].items() if look["is_highlighted"]}
    others = [arm for arm in spec["arms"] if arm not in shown]
    percent = " %" * (spec["scale"] == 100)
    targets = ", ".join(f"{spec['scale'] * target:g}{percent}" for target in spec["targets"])
    targets = targets and f"target{'s' * (len(spec['targets']) > 1)} {targets}"
    ends = {arm: end for arm in shown if (end := _end(x, y, lines.get((spec["panels"][0], arm, ""), [])))}
    room = 0.36 * spec["width"] / CHARACTER
    is_apart = len(ends) == 1 or len({place for _, place in ends.values()}) > 1
    has_names = [*spec["arms"]] not in ([""], ["all runs"])
    is_direct = len(panels) == 1 and spec["width"] > 4 and 0 < len(ends) == len(shown) <= 8 and is_apart and has_names
    if is_direct and not others and num_characters([*shown]) <= room:
        axes = panels[0]
        texts = [
            axes.text(1.05, 0.5, arm, va="center", color=_darker(shown[arm]["colour"]), transform=axes.transAxes)
            for arm in ends
        ]
        if targets:
            axes.annotate(
                targets,
                (0.005, max(spec["targets"]) * spec["scale"]),
                (2, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="bottom",
                fontsize=7,
                color="0.3",
            )
        lay_out(figure)
        height = axes.get_position().height * figure.get_figheight()
        at = axes.transAxes.inverted().transform(axes.transData.transform([*ends.values()]))
        at[:, 1] = np.clip(at[:, 1], 0, 1)
        gap = LINE / height
        for text, end, place in zip(texts, at, apart(at[:, 1], gap, 0, 1 - gap / 2), strict=True):
            text.set_y(place)
            mark = line_style(shown[text.get_text()]) | {"linestyle": "-", "linewidth": 0.5, "markevery": [1]}
            axes.plot([end[0], 1.03], [end[1], place], transform=axes.transAxes, clip_on=False, **mark)
        return
    labels = [*shown] if has_names else []
    handles = [Line2D([], [], **line_style(shown[label])) for label in labels]
    if others:
        handles.append(Line2D([], [], color=spec["arms"][others[0]]["colour"], linewidth=0.7))
        labels.append(", ".join(others) if len(others) <= _MAX_NAMED else f"{len(others)} others")
    if targets:
        handles.append(Line2D([], [], color="0.4", linestyle=(0, (2, 2)), linewidth=0.9))
        labels.append(targets)
    if handles:
        add_legend(figure, handles, labels)
    lay_out(figure)


def _darker(colour: str) -> tuple[float, ...]:
    """Return a colour that can be read as text."""
    return tuple(0.8 * part for part in to_rgb(colour))


def _end(x: Any, y: Any, rows: list[int]) -> tuple[float, float] | None:
    known = [row for row in rows if np.isfinite(x[row]) and np.isfinite(y[row])]
    return (float(x[known[-1]]), float(y[known[-1]])) if known else None
