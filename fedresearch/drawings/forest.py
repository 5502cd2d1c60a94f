"""Differences to a baseline with their intervals, a panel for each setting.

Data: ``panel, arm, difference, half_width, n``; an arm without a row in a panel has no run there.
"""

import numpy as np
from matplotlib.figure import Figure

from fedresearch.drawings.paper import LINE, Data, Spec, groups, lay_out, new_panels, num_lines, styled, wrap


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data.

    ``spec`` has ``panels``; ``arms``, by label; ``x_label`` and ``y_label``; ``scale``, 100 for per cent; ``width`` and
    ``font``.
    """
    names = [wrap(arm, 28) for arm in spec["arms"]]
    figure, panels = new_panels(spec, len(names) * (LINE * num_lines(names) + 0.06))
    difference, half_width = (spec["scale"] * data[name] for name in ("difference", "half_width"))
    rows = groups(data, "panel", "arm")
    for axes, panel in zip(panels, spec["panels"], strict=True):
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color="0.4", linewidth=0.9)
        for place, (arm, look) in enumerate(spec["arms"].items()):
            if (panel, arm) not in rows:
                axes.text(0.02, place, "no run", color="0.4", va="center", transform=axes.get_yaxis_transform())
                continue
            (row,) = rows[panel, arm]
            axes.errorbar(
                difference[row],
                place,
                xerr=half_width[row] if np.isfinite(half_width[row]) else None,
                color=look["colour"],
                marker=look["marker"] or "o",
                capsize=2.5,
                elinewidth=1.2,
            )
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return lay_out(figure)
