"""From a dataset and a Flower Datasets partitioner to the rows that each client holds."""

import warnings
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.data.source import Rows, Samples
from fedresearch.errors import InputError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def partition_rows(
    samples: Samples, partitioner: "Partitioner", *, num_supernodes: int | None, shuffle_seed: int | None
) -> list[Rows]:
    """Return the rows of ``samples`` that each client holds.

    With ``shuffle_seed`` S and a partitioner of the same seed these are the partitions that
    ``FederatedDataset(shuffle=True, seed=S)`` gives, for every partitioner of Flower Datasets.

    Parameters
    ----------
    samples : Samples
        What is shared out. A partitioner sees its class indices as column ``label`` and, where there are any, its
        natural ids as column ``natural_id``.
    partitioner : Partitioner
        A horizontal partitioner without a dataset yet.
    num_supernodes : int or None
        Number of clients: the first so many partitions. None: all of them.
    shuffle_seed : int or None
        Seed of the shuffle before partitioning; None: the rows stay in their order.

    Raises
    ------
    InputError
        If the partitioner refuses the data, or makes fewer partitions than there are clients.
    """
    if num_supernodes is not None and num_supernodes > len(samples.y):
        raise InputError(
            f"federation.num_supernodes={num_supernodes} is more than the {len(samples.y)} training samples; "
            "try federation.num_supernodes=10"
        )
    columns: dict[str, Any] = {"row": np.arange(len(samples.y))}
    if not samples.y.is_floating_point():
        columns["label"] = samples.y.numpy()
    if samples.natural_id is not None:
        columns["natural_id"] = samples.natural_id
    import datasets  # takes seconds; a client that knows its rows need not wait

    table = datasets.Dataset.from_dict(columns)
    partitioner.dataset = table if shuffle_seed is None else table.shuffle(seed=shuffle_seed)
    try:
        with warnings.catch_warnings(action="ignore"):  # of sizes that leave samples over, and of each redraw
            return _load(partitioner, num_supernodes)
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        raise InputError(
            f"{type(partitioner).__name__} cannot share out {len(samples.y)} samples with these partitioner.* values: "
            + " ".join(str(error).split())
        ) from error


def _load(partitioner: "Partitioner", num_supernodes: int | None) -> list[Rows]:
    num_partitions = partitioner.num_partitions
    if num_supernodes is not None and num_supernodes > num_partitions:
        raise InputError(
            f"{type(partitioner).__name__} makes {num_partitions} partitions, got "
            f"federation.num_supernodes={num_supernodes}; try federation.num_supernodes={num_partitions}"
        )
    parts = (partitioner.load_partition(i) for i in range(num_supernodes or num_partitions))
    return [np.asarray(part.with_format("numpy")["row"], dtype=np.int64) for part in parts]


def split_validation(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split one client's rows into training and validation rows.

    The same split as ``datasets.Dataset.train_test_split(test_size=fraction, seed=seed)``, which Flower's tutorial
    uses; only that a client always keeps one row to train on, where it has any.
    """
    num_validation = min(ceil(fraction * len(rows)), max(len(rows) - 1, 0))
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order[num_validation:]], rows[order[:num_validation]]


def lognormal_shares(
    num_classes: int, num_shares: int, num_unique_labels_per_partition: int, sigma: float, seed: int
) -> NDArray[np.float64]:
    """Return shares from a log-normal law for ``DistributionPartitioner`` (Li et al. 2020, arXiv:1812.06127).

    Parameters
    ----------
    num_classes : int
        Rows of the array.
    num_shares : int
        Number of clients; each takes ``num_unique_labels_per_partition`` of the array's entries.
    num_unique_labels_per_partition : int
        Classes a client holds.
    sigma : float
        Standard deviation of the shares' logarithm; 2 in the paper's MNIST split.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If the entries do not fill the rows evenly.
    """
    entries = num_shares * num_unique_labels_per_partition
    if num_shares % num_classes:
        raise ValueError(
            f"the number of clients must be a multiple of the {num_classes} classes, got {num_shares}; "
            f"try federation.num_supernodes={num_classes * max(1, num_shares // num_classes)}"
        )
    return np.random.default_rng(seed).lognormal(0.0, sigma, entries).reshape(num_classes, -1)
