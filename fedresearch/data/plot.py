"""The partition as a table, and as a picture of who holds which classes."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from fedresearch.data.federated import FederatedData

# More bars than this cannot be distinguished; the table contains all clients.
MAX_PLOTTED = 100

# Pixels: the height of the axes, and the place around them.
_HEIGHT, _LEFT, _TOP, _BELOW, _RIGHT = 320, 60, 40, 50, 80


def partition_csv(data: FederatedData, labels: Sequence[NDArray[np.int64]] | None, num_classes: int) -> str:
    """Return a CSV table of the partitions' numbers of samples: all, for training, for validation, of each class.

    Parameters
    ----------
    data : FederatedData
        The partitions.
    labels : sequence of ndarray or None
        For each partition, the class indices of its samples.
    num_classes : int
        Number of classes.
    """
    classes = range(num_classes) if labels is not None else ()
    lines = [",".join(["partition_id", "num_examples", "num_train", "num_validation", *map(str, classes)])]
    for partition_id, (train, validation) in enumerate(zip(data.train, data.validation, strict=True)):
        counts = [] if labels is None else np.bincount(labels[partition_id], minlength=num_classes).tolist()
        sizes = [partition_id, len(train) + len(validation), len(train), len(validation)]
        lines.append(",".join(map(str, sizes + counts)))
    return "\n".join(lines) + "\n"


def label_distribution_svg(labels: Sequence[NDArray[np.int64]], num_classes: int, title: str) -> str:
    """Return stacked bars of the classes' counts, for the first ``MAX_PLOTTED`` partitions.

    Written by hand: a plotting library takes longer to import than the whole run may take to start.
    """
    title += f" (first {MAX_PLOTTED} of {len(labels)} clients)" if len(labels) > MAX_PLOTTED else ""
    counts = np.stack([np.bincount(held, minlength=num_classes) for held in labels[:MAX_PLOTTED]])
    step = max(8, 480 // len(counts))  # pixels from one bar to the next
    width, height = _LEFT + step * len(counts) + _RIGHT, _TOP + _HEIGHT + _BELOW
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            'font-size="12" text-anchor="middle">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{_LEFT}" y="{_TOP - 16}" font-size="14" text-anchor="start">{escape(title)}</text>',
            f'<text x="{(_LEFT + width - _RIGHT) // 2}" y="{height - 10}">partition</text>',
            f'<text transform="translate(14 {_TOP + _HEIGHT // 2}) rotate(-90)">samples</text>',
            *_bars(counts, step),
            *(_legend(num_classes, width - _RIGHT + 10) if num_classes <= 20 else ()),
            "</svg>\n",
        ]
    )


def _bars(counts: NDArray[np.int64], step: int) -> Iterator[str]:
    """Yield both axes' numbers, and a path for the bars of each class."""
    highest, bottom = 4 * max(1, -(-int(counts.sum(axis=1).max()) // 4)), _TOP + _HEIGHT
    for share in range(5):
        y = bottom - _HEIGHT * share / 4
        yield f'<path d="M{_LEFT} {y:g}H{_LEFT + step * len(counts)}" stroke="lightgrey"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{highest * share // 4}</text>'
    for i in range(0, len(counts), -(-len(counts) // 20)):
        yield f'<text x="{_LEFT + step * (i + 0.5):g}" y="{bottom + 18}">{i}</text>'
    tops = bottom - _HEIGHT * counts.cumsum(axis=1) / highest
    for label, (held, top) in enumerate(zip(counts.T.tolist(), tops.T.tolist(), strict=True)):
        bars = "".join(
            f"M{_LEFT + step * (i + 0.1):.1f} {top[i]:.1f}h{0.8 * step:.1f}v{_HEIGHT * count / highest:.1f}"
            f"h{-0.8 * step:.1f}z"
            for i, count in enumerate(held)
            if count
        )
        yield f'<path d="{bars}" fill="{_color(label, counts.shape[1])}"/>'


def _legend(num_classes: int, x: int) -> Iterator[str]:
    for label in range(num_classes):
        y = _TOP + 16 * label
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_color(label, num_classes)}"/>'
        yield f'<text x="{x + 18}" y="{y + 10}" text-anchor="start">{label}</text>'


def _color(label: int, num_classes: int) -> str:
    """Return a colour: around the wheel, by turns darker and lighter."""
    return f"hsl({360 * label // num_classes},65%,{(45, 65)[label % 2]}%)"
