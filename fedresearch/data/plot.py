"""The partition as a table, and as Flower Datasets' plot of the label distribution."""

import io
from collections.abc import Sequence

import datasets
import matplotlib.pyplot as plt
import numpy as np
from flwr_datasets.common import telemetry
from flwr_datasets.partitioner import Partitioner
from flwr_datasets.visualization import plot_label_distributions
from numpy.typing import NDArray

from fedresearch.data.federated import FederatedData

# More bars than this cannot be distinguished; the table contains all clients.
MAX_PLOTTED = 100


class _Drawn(Partitioner):  # type: ignore[misc]
    """Finished partitions in the form that Flower Datasets plots."""

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


def label_distribution_png(labels: Sequence[NDArray[np.int64]], num_classes: int, title: str) -> bytes:
    """Return Flower Datasets' stacked bar plot of the classes' counts, for the first ``MAX_PLOTTED`` partitions."""
    plotted = [np.asarray(held) for held in labels[:MAX_PLOTTED]]
    title += f" (first {MAX_PLOTTED} of {len(labels)} clients)" if len(labels) > MAX_PLOTTED else ""
    # Flower Datasets' telemetry, even if disabled, writes an id to the home directory.
    telemetry.state["source"] = "unavailable"
    backend = plt.get_backend()
    plt.switch_backend("agg")  # a backend without a display
    figure, _, _ = plot_label_distributions(
        _Drawn(plotted, num_classes),
        label_name="label",
        title=title,
        legend=num_classes <= 20,
        figsize=(max(6.4, 0.12 * len(plotted)), 4.8),
        cmap="tab20" if num_classes > 10 else "tab10",
    )
    axis = figure.axes[0]
    axis.set_ylim(0, 1.05 * max(map(len, plotted)))
    if len(plotted) > 20:
        axis.set_xticks(axis.get_xticks()[:: len(plotted) // 10])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    plt.switch_backend(backend)
    return buffer.getvalue()
