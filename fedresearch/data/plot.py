"""The label distribution over the clients, as a table and as Flower Datasets' plot."""

import io
from collections.abc import Sequence

import datasets
import matplotlib.pyplot as plt
import numpy as np
from flwr_datasets.common import telemetry
from flwr_datasets.partitioner import Partitioner
from flwr_datasets.visualization import plot_label_distributions
from numpy.typing import NDArray

# More bars than this cannot be told apart; the table has them all.
MAX_PLOTTED = 100


class _Drawn(Partitioner):  # type: ignore[misc]
    """Partitions that are already made, in the form that Flower Datasets plots."""

    def __init__(self, labels: Sequence[NDArray[np.int64]], num_classes: int) -> None:
        super().__init__()
        self._features = datasets.Features({"label": datasets.ClassLabel(num_classes=num_classes)})
        self._labels = labels
        self.dataset = self._table(np.concatenate(labels))

    def _table(self, labels: NDArray[np.int64]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"label": labels}, features=self._features)

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        return self._table(self._labels[partition_id])

    @property
    def num_partitions(self) -> int:
        return len(self._labels)


def label_counts_csv(labels: Sequence[NDArray[np.int64]], num_classes: int) -> str:
    """Return a CSV table of the number of samples of each class that each partition holds.

    Parameters
    ----------
    labels : sequence of ndarray
        For each partition, its class indices.
    num_classes : int
        Number of columns after ``partition_id`` and ``num_examples``.
    """
    lines = [",".join(["partition_id", "num_examples", *map(str, range(num_classes))])]
    for partition_id, held in enumerate(labels):
        counts = np.bincount(held, minlength=num_classes)
        lines.append(",".join(map(str, [partition_id, len(held), *counts])))
    return "\n".join(lines) + "\n"


def label_distribution_png(labels: Sequence[NDArray[np.int64]], num_classes: int) -> bytes:
    """Return Flower Datasets' stacked bar plot of the same counts, for the first ``MAX_PLOTTED`` partitions."""
    shown = [np.asarray(held) for held in labels[:MAX_PLOTTED]]
    title = "Label distribution" + (f" (first {MAX_PLOTTED} of {len(labels)})" if len(labels) > MAX_PLOTTED else "")
    # Flower Datasets counts calls, and with that switched off still writes an id to the home directory.
    telemetry.state["source"] = "unavailable"
    backend = plt.get_backend()
    plt.switch_backend("agg")  # no screen is needed
    figure, _, _ = plot_label_distributions(
        _Drawn(shown, num_classes),
        label_name="label",
        title=title,
        legend=num_classes <= 20,
        figsize=(max(6.4, 0.12 * len(shown)), 4.8),
        cmap="tab20" if num_classes > 10 else "tab10",
    )
    axis = figure.axes[0]
    if len(shown) > 20:
        axis.set_xticks(axis.get_xticks()[:: len(shown) // 10])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    plt.switch_backend(backend)
    return buffer.getvalue()
