"""Mean ranks on a line, the best on the left; bars join arms whose ranks do not differ (Demsar 2006, Figure 1).

Data: ``arm, rank``.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedresearch.drawings.paper import CHARACTER, LINE, Data, Spec, num_characters, num_lines, styled, wrap

_BAR = 0.09  # inches, from one bar to the next


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data: the better half of the arms has its names on the left, the others on the right.

    ``spec`` has ``arms``, by label; ``critical_difference`` of ranks; ``width`` and ``font``.
    """
    order = np.argsort(data["rank"], kind="stable")
    ranks, arms = data["rank"][order], [data["arm"][number] for number in order]
    names = [_name(arm, rank, spec["width"]) for arm, rank in zip(arms, ranks, strict=True)]
    joined = groups_of(ranks, spec["critical_difference"])
    half, line = -(-len(arms) // 2), LINE * num_lines(names) + 0.04
    side = CHARACTER * (num_characters(names) + 1) + 0.1  # inches, of a name and its number
    inch = (spec["width"] - 2 * side) / (len(arms) - 1)  # from one rank to the next
    bars, top = 0.12 + _BAR * len(joined), 0.5
    height = top + bars + line * half + 0.05
    figure = Figure(figsize=(spec["width"], height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, spec["width"]), ylim=(top - height, top))
    axes.set_axis_off()
    places = side + inch * (ranks - 1)
    axes.plot([side, spec["width"] - side], [0, 0], color="black", linewidth=0.8, solid_capstyle="projecting")
    for rank in range(1, len(arms) + 1):
        place = side + inch * (rank - 1)
        axes.plot([place, place], [0, 0.05], color="black", linewidth=0.8)
        axes.text(place, 0.07, str(rank), ha="center", va="bottom", fontsize=7.5)
    axes.text(side - 0.12, 0.07, "mean rank", ha="right", va="bottom", fontsize=7.5)
    end = side + inch * spec["critical_difference"]
    axes.errorbar([(side + end) / 2], [0.3], xerr=(end - side) / 2, color="0.3", capsize=2.5, elinewidth=0.8)
    text = f"critical difference {spec['critical_difference']:.2f}"
    axes.text(end + 0.08, 0.3, text, va="center", color="0.3", fontsize=7.5)
    for level, (first, last) in enumerate(joined):
        ends = [places[first] - 0.04, places[last] + 0.04]
        axes.plot(ends, [-0.1 - _BAR * level] * 2, color="0.2", linewidth=3, solid_capstyle="butt")
    for number, (name, arm, place) in enumerate(zip(names, arms, places, strict=True)):
        is_left = number < half
        row = number if is_left else len(arms) - 1 - number
        depth = -bars - line * (row + 0.5)
        edge = side - 0.08 if is_left else spec["width"] - side + 0.08
        look = spec["arms"][arm]
        axes.plot([place, place, edge], [0, depth, depth], color=look["colour"], linewidth=0.8, zorder=1.9)
        axes.plot([place], [0], color=look["colour"], marker=look["marker"] or "o", zorder=3)
        axes.text(edge + (-0.05 if is_left else 0.05), depth, name, ha="right" if is_left else "left", va="center")
    return figure


def groups_of(ranks: NDArray[np.float64], difference: float) -> list[tuple[int, int]]:
    """Return the first and last of each largest group of two or more ascending ranks that are less than this apart."""
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = int(np.searchsorted(ranks, rank + difference)) - 1
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def _name(arm: str, rank: float, width: float) -> str:
    """Return an arm's name with its rank, in a narrow figure with the numbers in brackets below."""
    if width > 4:
        return wrap(f"{arm} {rank:.2f}", 30)
    name, bracket, numbers = arm.partition(" (")
    return "\n".join(wrap(line, 16) for line in (f"{name} {rank:.2f}", f"{bracket.strip()}{numbers}") if line)
