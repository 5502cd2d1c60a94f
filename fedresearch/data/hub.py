"""Datasets from the Hugging Face Hub, or from Parquet files downloaded from it, decoded once into arrays."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import datasets
import httpx
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray

from fedresearch.data.cache import Arrays, cached_arrays
from fedresearch.data.files import find_parquet, read_columns, refuse_missing
from fedresearch.data.images import decode_images, normalisation
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError

log = logging.getLogger(__name__)

datasets.disable_progress_bars()
datasets.utils.logging.set_verbosity_error()
huggingface_hub.utils.logging.set_verbosity_error()
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise each loading sends a request, even for local files

_CONNECT_TIMEOUT_S = 10


class HubUnreachableError(InputError):
    """The Hub cannot be reached, and this machine has no copy of the dataset."""


def load(
    *,
    name: str,
    image: str,
    label: str,
    mean: Sequence[float],
    std: Sequence[float],
    cache_dir: str,
    natural_id: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
    test_fraction: float = 0.1,
    subset: str | None = None,
    revision: str | None = None,
    path: str | None = None,
    mode: str | None = None,
) -> Source:
    """Load a dataset of labelled images, all grey or all RGB and of one size.

    Parameters
    ----------
    name : str
        The dataset on the Hub, ``owner/name``.
    image, label : str
        The columns of the images and of their class indices.
    mean, std : sequence of float
        For each channel, the subtrahend of pixels scaled to [0, 1], and their divisor afterwards.
    cache_dir : str
        Folder of the decoded arrays. Downloads are kept in ``HF_HOME``.
    natural_id : str or None
        The column with the origin of each sample, such as a writer; its values are numbered in their sorted order.
    train_split, test_split : str
        Names of the splits. ``test_split`` None: a fixed share ``test_fraction`` of the training split is the test
        split.
    subset : str or None
        The dataset's configuration, if it has several.
    revision : str or None
        A commit on the Hub; None: the newest one at the first loading, which is then kept.
    path : str or None
        Folder with Parquet files, see :func:`fedresearch.data.files.find_parquet`; None: the Hub.
    mode : {"L", "RGB"} or None
        The mode to which all images are converted; None: no conversion.

    Raises
    ------
    InputError
        If the data cannot be loaded or has the wrong format.
    """
    if test_split is None and not 0 < test_fraction < 1:
        raise InputError(f"dataset.test_fraction must be in (0, 1), got {test_fraction}; try dataset.test_fraction=0.1")
    columns = {"image": image, "label": label} | ({} if natural_id is None else {"natural_id": natural_id})

    def decode(table: pa.Table) -> Arrays:
        ids = {} if natural_id is None else {"natural_id": number_ids(table[natural_id], natural_id)}
        return {"x": decode_images(table[image], image, mode), "y": _labels(table[label], label), **ids}

    def split_arrays(split: str) -> Arrays:
        return load_split(
            split,
            decode,
            columns=columns,
            name=name,
            subset=subset,
            revision=revision,
            files=None if path is None else find_parquet(path, split, subset),
            cache_dir=cache_dir,
            decoding={} if mode is None else {"mode": mode},
        )

    def samples(arrays: Arrays) -> Samples:
        return Samples(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]), arrays.get("natural_id"))

    arrays = split_arrays(train_split)
    normalise = normalisation(arrays["x"].shape[1], mean, std)
    if test_split is not None:
        return Source(samples(arrays), samples(split_arrays(test_split)), normalise)
    num_samples = len(arrays["y"])
    held_out = np.zeros(num_samples, dtype=bool)
    held_out[np.random.default_rng(0).permutation(num_samples)[: round(test_fraction * num_samples)]] = True
    train, test = ({key: array[rows] for key, array in arrays.items()} for rows in (~held_out, held_out))
    return Source(samples(train), samples(test), normalise)


def load_split(
    split: str,
    decode: Callable[[pa.Table], Arrays],
    *,
    columns: Mapping[str, str],
    name: str,
    subset: str | None,
    revision: str | None,
    files: Sequence[Path] | None,
    cache_dir: str,
    decoding: Mapping[str, str] | None = None,
) -> Arrays:
    """Return the arrays that ``decode`` makes of one split, from the cache if present.

    Parameters
    ----------
    columns : mapping
        The columns that ``decode`` reads, by their config keys.
    files : sequence of Path or None
        Parquet or CSV files of the split; None: the Hub's.
    decoding : mapping, optional
        The other options on which the arrays depend.

    Raises
    ------
    InputError
        If the split cannot be loaded or is empty, or if a column is missing or has an empty row.
    """
    found = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files or ()]
    where = f"split {split} of {name}" if files is None else f"{files[0]}" + " and others" * (len(files) > 1)

    def make() -> Arrays:
        table = (
            _load_from_hub(name, subset, revision, split, columns) if files is None else read_columns(files, columns)
        )
        if not len(table):
            raise InputError(f"{where} holds no samples")
        for key, column in columns.items():
            if table[column].null_count:
                row = pc.index(pc.is_null(table[column]), True).as_py()
                raise InputError(f"{where}: row {row} of dataset.{key}={column} has no value (null)")
        return decode(table)

    key = [name, subset, revision, split, dict(columns), found, *([dict(decoding)] if decoding else [])]
    arrays = cached_arrays(cache_dir, f"{name}-{split}", key, make)
    if files is not None:
        listed = f"{len(files)} files, {files[0]} and others" if len(files) > 1 else f"{files[0]}"
        log.info("split %s: %d samples of %s", split, len(arrays[next(iter(arrays))]), listed)
    return arrays


def number_ids(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    """Return the number of each sample's id in the sorted order of the ids.

    Raises
    ------
    InputError
        If the ids are neither texts nor integers.
    """
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"dataset.natural_id={name} must hold text or integers, got {kind}")
    values = column.to_pylist()
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.fromiter((numbers[value] for value in values), dtype=np.int64, count=len(values))


def _load_from_hub(
    name: str, subset: str | None, revision: str | None, split: str, columns: Mapping[str, str]
) -> pa.Table:
    if Path(name).exists():  # `datasets` would load it as the dataset
        raise InputError(
            f"dataset.name={name} is a local folder, which would be read instead of the Hub; try dataset.path={name}"
        )
    if _is_reachable(name):
        log.info("downloading split %s of %s from the Hugging Face Hub, once", split, name)
    else:
        datasets.config.HF_HUB_OFFLINE = True  # otherwise it retries for 20 s before it looks for a local copy
    where = f"split {split} of {name}"
    try:
        dataset = datasets.load_dataset(name, subset, split=split, revision=revision)
        refuse_missing(where, columns, dataset.column_names)
        return dataset.select_columns([*dict.fromkeys(columns.values())]).with_format("arrow")[:]
    except ConnectionError as error:
        raise HubUnreachableError(
            f"{name} is not on this machine and the Hugging Face Hub cannot be reached; connect once (it is then "
            "kept), or download its data files elsewhere and set dataset.path=DIR to their folder"
        ) from error
    except (DatasetsError, OSError, ValueError, TypeError, httpx.HTTPError) as error:
        cause = error.__cause__ or error  # `datasets` says only that an error occurred
        raise InputError(f"{where} cannot be read: {shorten(str(cause), 300, placeholder=' ...')}") from error


def _is_reachable(name: str) -> bool:
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_CONNECT_TIMEOUT_S)
    except HfHubHTTPError:
        return True  # the Hub answered; the error of `load_dataset` explains more
    except (OSError, httpx.TransportError):
        return False
    return True


def _labels(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(
            f"dataset.label={name} must hold class indices, got {column.type}; try a different dataset.label=COLUMN, "
            "or number the classes in the files"
        )
    labels = column.to_numpy()
    with np.errstate(invalid="ignore"):
        indices: NDArray[np.int64] = labels.astype(np.int64)
    if not (indices == labels).all():
        invalid = labels[indices != labels][0]
        raise InputError(f"dataset.label={name} must hold class indices, got {invalid}; try dataset.label=COLUMN")
    return indices
