"""The rows of each client, by a partitioner of Flower Datasets."""

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from textwrap import shorten
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.data.source import Rows, Samples
from fedresearch.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner


def import_flower_datasets() -> None:
    """Import Flower Datasets without its plots, which import seaborn and SciPy; they follow where something draws."""
    name = "flwr_datasets.visualization"
    if "flwr_datasets" not in sys.modules:
        plots = sys.modules[name] = ModuleType(name)
        vars(plots)["__getattr__"] = lambda attribute: getattr(importlib.import_module(name), attribute)
        importlib.import_module("flwr_datasets")
        del sys.modules[name]


def partition_rows(
    samples: Samples, partitioner: "Partitioner", *, num_supernodes: int | None, shuffle_seed: int | None
) -> list[Rows]:
    """Return the rows of ``samples`` that each client holds.

    With ``shuffle_seed`` S and a partitioner of the same seed these are the partitions that
    ``FederatedDataset(shuffle=True, seed=S)`` gives, for every partitioner of Flower Datasets.

    Parameters
    ----------
    samples : Samples
        The samples to partition. A partitioner sees their ``columns``.
    partitioner : Partitioner
        A horizontal partitioner, still without a dataset.
    num_supernodes : int or None
        Number of clients, which get the first partitions; None: one for each partition.
    shuffle_seed : int or None
        Seed of the shuffle before partitioning; None: no shuffle.

    Raises
    ------
    InputError
        If the partitioner refuses the data, assigns a sample more than once, or makes fewer partitions than the number
        of clients.
    """
    if num_supernodes is not None and num_supernodes > len(samples.y):
        raise InputError(
            f"federation.num_supernodes={num_supernodes} is more than the {len(samples.y)} training samples; "
            "try federation.num_supernodes=10"
        )
    import datasets  # takes seconds, which a client with known rows saves

    datasets.utils.logging.set_verbosity_error()  # otherwise it prints every index of a partition that it cannot hash
    keys = columns(samples)
    table = datasets.Dataset.from_dict({"row": np.arange(len(samples.y)), **keys})
    partitioner.dataset = _read_at_once(table if shuffle_seed is None else table.shuffle(seed=shuffle_seed))
    try:
        with warnings.catch_warnings(action="ignore"):  # about leftover samples and each redraw
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)  # a size that is NaN
            rows = _load(partitioner, num_supernodes)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeWarning) as error:
        reason = "sizes that are not numbers (NaN)" if isinstance(error, RuntimeWarning) else str(error)
        if "label" in keys and not np.array_equal(keys["label"], samples.y):
            reason = f"(labels are numbered from 0) {reason}"
        raise InputError(_refusal(partitioner, len(samples.y), reason)) from error
    _refuse_shared(rows, partitioner, len(samples.y))
    return rows


def columns(samples: Samples) -> dict[str, NDArray[np.int64]]:
    """Return the columns by which samples can be partitioned: ``label`` and ``natural_id``, if they exist.

    The values are numbered from 0 in their sorted order, as some partitioners of Flower Datasets assume.
    """
    values: dict[str, Any] = {}
    if not samples.y.is_floating_point():
        values["label"] = samples.y.numpy()
    if samples.natural_id is not None:
        values["natural_id"] = samples.natural_id
    return {name: np.unique(column, return_inverse=True)[1].astype(np.int64) for name, column in values.items()}


def _read_at_once(table: "Dataset") -> "Dataset":
    """Return a table whose columns are read at once; a partitioner would read them row by row, for seconds."""

    class Table(type(table)):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(slice(None))[key] if isinstance(key, str) else super().__getitem__(key)

    table.__class__ = Table
    return table


def _load(partitioner: "Partitioner", num_supernodes: int | None) -> list[Rows]:
    num_partitions = partitioner.num_partitions
    if num_supernodes is not None and num_supernodes > num_partitions:
        raise InputError(
            f"{type(partitioner).__name__} makes {num_partitions} partitions, got "
            f"federation.num_supernodes={num_supernodes}; try federation.num_supernodes={num_partitions}"
        )
    parts = (partitioner.load_partition(i) for i in range(num_supernodes or num_partitions))
    # Sliced, since a column itself is read row by row.
    return [np.asarray(part.with_format("numpy")["row"][:], dtype=np.int64) for part in parts]


# A hint for each argument of a partitioner that may make a partition feasible.
_HINTS = {
    "min_partition_size": "partitioner.min_partition_size=0",
    "alpha": "a larger partitioner.alpha",
    "distribution_array": "a smaller partitioner.distribution_array.sigma",
    "partition_sizes": "smaller partitioner.partition_sizes",
    **{
        name: f"a smaller partitioner.{name}"
        for name in (
            "num_classes_per_partition",
            "num_unique_labels_per_partition",
            "preassigned_num_samples_per_label",
            "num_shards_per_partition",
            "shard_size",
            "group_size",
        )
    },
    "num_partitions": "a smaller federation.num_supernodes",
    "path": "another partitioner.path",
}


def _refusal(partitioner: "Partitioner", num_samples: int, reason: str) -> str:
    """Return the message that refuses a partition, with the keys that may help."""
    arguments = inspect.signature(type(partitioner)).parameters
    *most, last = [hint for name, hint in _HINTS.items() if name in arguments] or ["partitioner=iid"]
    return (
        f"{type(partitioner).__name__} cannot partition {num_samples} samples with these partitioner.* values: "
        f"{shorten(reason, 300, placeholder=' ...').rstrip('.')}; try {', '.join(most)}{' or ' * bool(most)}{last}"
    )


def _refuse_shared(rows: Sequence[Rows], partitioner: "Partitioner", num_samples: int) -> None:
    """Refuse a partition that assigns a sample to two clients, or twice to one."""
    times = np.bincount(np.concatenate(rows), minlength=num_samples)
    shared = np.flatnonzero(times > 1)
    if len(shared):
        owners = [i for i, held in enumerate(rows) for _ in range(np.count_nonzero(held == shared[0]))]
        raise InputError(
            _refusal(
                partitioner,
                num_samples,
                f"it assigns {len(shared)} of them more than once, such as sample {shared[0]} to clients "
                f"{' and '.join(map(str, owners[:2]))}",
            )
        )


def split_validation(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split one client's rows into training and validation rows.

    The split is that of ``datasets.Dataset.train_test_split(test_size=fraction, seed=seed)``, as in Flower's tutorial,
    except that a client with rows always keeps one for training.
    """
    num_validation = min(ceil(fraction * len(rows)), max(len(rows) - 1, 0))
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order[num_validation:]], rows[order[:num_validation]]


def distribution(
    *,
    distribution_array: "Callable[..., NDArray[np.float64]] | Sequence[Sequence[float]]",
    num_classes: int,
    seed: int,
    **options: Any,
) -> "Partitioner":
    """Return Flower Datasets' ``DistributionPartitioner`` for the classes of the data.

    Parameters
    ----------
    distribution_array : callable or array of shape (classes, clients * num_unique_labels_per_partition / classes)
        The shares; a callable returns them for ``num_classes``.
    num_classes : int
        Number of values of the partitioned column, which the run sets.
    seed : int
        Seed of the partitioner.
    **options
        The partitioner's other arguments.
    """
    from flwr_datasets.partitioner import DistributionPartitioner  # imports `datasets`, which takes seconds

    shares = distribution_array(num_classes=num_classes) if callable(distribution_array) else distribution_array
    return DistributionPartitioner(np.asarray(shares), seed=seed, **options)


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
        If the entries do not fill the rows evenly, or if their sums are not finite and positive.
    """
    entries = num_shares * num_unique_labels_per_partition
    if num_shares % num_classes:
        raise ValueError(
            f"the number of clients must be a multiple of the {num_classes} classes, got {num_shares}; "
            f"try federation.num_supernodes={num_classes * max(1, num_shares // num_classes)}"
        )
    shares = np.random.default_rng(seed).lognormal(0.0, sigma, entries).reshape(num_classes, -1)
    with np.errstate(over="ignore"):
        sums = shares.sum(axis=1)
    if not (np.isfinite(sums) & (sums > 0)).all():
        raise ValueError(
            f"sigma={sigma} gives shares outside the range of floats; try partitioner.distribution_array.sigma=2.0"
        )
    return shares
