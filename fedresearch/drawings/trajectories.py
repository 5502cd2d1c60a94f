"""Each client's metric over the rounds as a thin line, with the clients' median and percentiles, a panel for each arm.

Data: ``panel, arm, client, x, y, low, high``; a row without a client is of the median and of the percentiles.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedresearch.drawings.paper import Data, Spec, add_legend, groups, lay_out, new_panels, styled


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data.

    ``spec`` has ``panels``, one arm in each; how many ``columns`` of them, None for as many as fit; their common
    labels as a ``grid``, or None; ``arms``, by label; ``x_label`` and ``y_label``; ``scale`` of y, 100 for per cent;
    ``limits`` of what y can be, None where it has none; ``width`` and ``font``.
    """
    figure, panels = new_panels(spec, 1.0 if len(spec["panels"]) > 1 else 2.2)
    x, client = data["x"], data["client"]
    y, low, high = (spec["scale"] * data[name] for name in ("y", "low", "high"))
    for (panel, arm), found in groups(data, "panel", "arm").items():
        axes, colour = panels[spec["panels"].index(panel)], spec["arms"][arm]["colour"]
        rows = np.array(found)
        for number in np.unique(client[rows][np.isfinite(client[rows])]):
            own = rows[(client[rows] == number) & np.isfinite(y[rows])]
            axes.plot(x[own], y[own], color=colour, linewidth=0.5, alpha=0.45, zorder=1.5)
        whole = rows[np.isnan(client[rows]) & np.isfinite(y[rows])]
        axes.fill_between(x[whole], low[whole], high[whole], color=colour, alpha=0.15, linewidth=0, zorder=1.2)
        axes.plot(x[whole], y[whole], color=colour, linewidth=1.6, zorder=2)
    known = np.isfinite(y)
    if known.any():
        first, last = x[known].min(), x[known].max()
        panels[0].set_xlim(first, last if last > first else first + 1)
        bottom, top = panels[0].get_ylim()
        floor, ceiling = (end if end is None else spec["scale"] * end for end in spec["limits"])
        room = 0.02 * (top - bottom)
        if not ((floor is not None and y[known].min() < floor) or (ceiling is not None and y[known].max() > ceiling)):
            bottom = bottom if floor is None else max(bottom, floor - room)
            top = top if ceiling is None else min(top, ceiling + room)
        panels[0].set_ylim(bottom, top)
    for axes in panels:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1, nbins=5 if len(panels) > 1 else 8)
    handles = [
        Line2D([], [], color="0.2", linewidth=1.6),
        Patch(color="0.2", alpha=0.2, linewidth=0),
        Line2D([], [], color="0.2", linewidth=0.5),
    ]
    add_legend(figure, handles, ["median client", "10th to 90th percentile", "each client"])
    return lay_out(figure)
