"""The samples of each class that each client holds: bubbles, or stacked bars where there are many clients.

Data: ``client, class, samples``.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedresearch.drawings.paper import (
    CHARACTER,
    LINE,
    Data,
    Spec,
    add_legend,
    lay_out,
    new_axes,
    num_lines,
    styled,
    wrap,
)

# Petroff, "Accessible color sequences for data visualization", 2021: ten that the colour-blind can distinguish.
_CLASSES = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


@styled
def draw(data: Data, spec: Spec) -> Figure:
    """Draw the data.

    ``spec`` has ``kind``, ``bubbles`` or ``bars``; ``x_label``; ``title``; ``width`` and ``font``.
    """
    clients, classes = (int(data[name].max()) + 1 for name in ("client", "class"))
    counts = np.zeros((clients, classes))
    counts[data["client"].astype(int), data["class"].astype(int)] = data["samples"]
    title = wrap(spec["title"], spec["width"] / CHARACTER - 10)
    is_bubbles = spec["kind"] == "bubbles"
    height = max(1.2, 0.16 * classes) + 0.6 if is_bubbles else 2.6
    height += LINE * (num_lines([title]) + 1)
    figure, axes = new_axes(spec, height, spec["x_label"], "Class" if is_bubbles else "Samples")
    figure.suptitle(title)
    if is_bubbles:
        axes.set_axisbelow(True)
        client, held = np.nonzero(counts)
        step = 72 * min(0.14, (spec["width"] - 0.8) / clients)  # points, between neighbours
        sizes = (1.25 * step) ** 2 * counts[client, held] / counts.max()
        colours = [_CLASSES[number % len(_CLASSES)] for number in held]
        axes.scatter(client, held, sizes, c=colours, edgecolors="0.25", linewidths=0.3)
        axes.set_ylim(-0.7, classes - 0.3)
        axes.set_xlim(-0.7, clients - 0.3)
        axes.set_yticks(range(classes))
    else:
        axes.grid(visible=False, axis="x")
        below = np.cumsum(counts, axis=1) - counts
        ramp = colormaps["cividis"](np.linspace(0, 1, classes))
        bars = [
            axes.bar(
                np.arange(clients),
                held,
                0.9,
                bottom,
                color=_CLASSES[number] if classes <= len(_CLASSES) else ramp[number],
                edgecolor="white",
                linewidth=0.2,
            )
            for number, (held, bottom) in enumerate(zip(counts.T, below.T, strict=True))
        ]
        if classes <= len(_CLASSES):
            add_legend(figure, bars, [f"class {number}" for number in range(classes)])
        else:
            scale = ScalarMappable(Normalize(0, classes - 1), "cividis")
            figure.colorbar(scale, ax=axes, pad=0.02, aspect=30, label="class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=20 if clients <= 20 else 10))
    return lay_out(figure)
