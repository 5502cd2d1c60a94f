"""Datasets of the Hugging Face Hub, or of Parquet files that were downloaded from it, decoded once into arrays."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import httpx
import huggingface_hub
import numpy as np
import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.data.cache import Arrays, cached_arrays
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError

log = logging.getLogger(__name__)

datasets.disable_progress_bars()
datasets.utils.logging.set_verbosity_error()
huggingface_hub.utils.logging.set_verbosity_error()
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request at each loading, of local files too

_CHANNELS = {"L": 1, "RGB": 3}
_CONNECT_TIMEOUT_S = 10


class HubUnreachableError(InputError):
    """There is neither a connection to the Hub nor a copy of the dataset on this machine."""


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
) -> Source:
    """Load a dataset of labelled images of one size, grey or RGB.

    Parameters
    ----------
    name : str
        The dataset on the Hub, ``owner/name``.
    image, label : str
        Columns of the images and of their class indices.
    mean, std : sequence of float
        For each channel, what is subtracted from pixels scaled to [0, 1], and what they are divided by afterwards.
    cache_dir : str
        Where the decoded arrays are kept. What the Hub sends is kept where ``HF_HOME`` says.
    natural_id : str or None
        Column of who each sample comes from; ids are numbered in their sorted order.
    train_split, test_split : str
        Names of the splits. ``test_split`` None: ``test_fraction`` of the training split is held out, the same
        samples in every run.
    subset : str or None
        The dataset's configuration, where it has several.
    revision : str or None
        A commit on the Hub; None: the newest when it is first loaded, which is then kept.
    path : str or None
        Folder with the Parquet files, ``train*.parquet`` or ``train/*.parquet`` and likewise for the test split, at
        any depth; None: the Hub.

    Raises
    ------
    InputError
        If the data cannot be had or is not of this kind.
    """
    if test_split is None and not 0 < test_fraction < 1:
        raise InputError(f"dataset.test_fraction must be in (0, 1), got {test_fraction}; try dataset.test_fraction=0.1")
    columns = {"image": image, "label": label} | ({} if natural_id is None else {"natural_id": natural_id})

    def decode(dataset: datasets.Dataset) -> Arrays:
        ids = {} if natural_id is None else {"natural_id": number_ids(dataset, natural_id)}
        return {"x": _decode_images(dataset, image), "y": _labels(dataset, label), **ids}

    def split_arrays(split: str) -> Arrays:
        return load_split(
            split,
            decode,
            columns=columns,
            name=name,
            subset=subset,
            revision=revision,
            files=None if path is None else _find_parquet(path, split),
            cache_dir=cache_dir,
        )

    def samples(arrays: Arrays) -> Samples:
        return Samples(normalise(arrays["x"], mean, std), torch.from_numpy(arrays["y"]), arrays.get("natural_id"))

    arrays = split_arrays(train_split)
    if test_split is not None:
        return Source(samples(arrays), samples(split_arrays(test_split)))
    num_samples = len(arrays["y"])
    held_out = np.zeros(num_samples, dtype=bool)
    held_out[np.random.default_rng(0).permutation(num_samples)[: round(test_fraction * num_samples)]] = True
    train, test = ({key: array[rows] for key, array in arrays.items()} for rows in (~held_out, held_out))
    return Source(samples(train), samples(test))


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pixels of shape ``(n, channels, height, width)`` as float32, normalised for each channel.

    Raises
    ------
    InputError
        If mean and std are not given for each channel.
    """
    channels = pixels.shape[1]
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"dataset.mean and dataset.std must have an entry for each channel, and the images have {channels}, "
            f"got dataset.mean={list(mean)} dataset.std={list(std)}"
        )
    x = torch.from_numpy(pixels).to(torch.float32)
    centre, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    return x.div_(255).sub_(centre).div_(scale)


def load_split(
    split: str,
    decode: Callable[[datasets.Dataset], Arrays],
    *,
    columns: Mapping[str, str],
    name: str,
    subset: str | None,
    revision: str | None,
    files: Sequence[Path] | None,
    cache_dir: str,
) -> Arrays:
    """Return the arrays that ``decode`` makes of one split, from the cache where they are there.

    Parameters
    ----------
    columns : mapping
        The columns that ``decode`` reads, by the config key that names each.
    files : sequence of Path or None
        Parquet or CSV files of the split; None: the Hub's.

    Raises
    ------
    InputError
        If the split cannot be had, is empty or lacks a column.
    """
    found = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files or ()]
    where = f"split {split} of {name}" if files is None else f"{files[0]}" + " and others" * (len(files) > 1)

    def make() -> Arrays:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                if files is None:
                    dataset = _load_from_hub(name, subset, revision, split)
                else:
                    dataset = datasets.load_dataset(
                        files[0].suffix.removeprefix("."),
                        data_files=[str(file) for file in files],
                        split="train",  # what `datasets` calls files that are given as a list
                        cache_dir=scratch,
                    )
                for key, column in columns.items():
                    if column not in dataset.column_names:
                        raise InputError(
                            f"{where} has no column {column}; try dataset.{key}=COLUMN, "
                            f"one of {', '.join(dataset.column_names)}"
                        )
                if not len(dataset):
                    raise InputError(f"{where} holds no samples")
                return decode(dataset.select_columns(list(dict.fromkeys(columns.values()))))
            except (DatasetsError, OSError, ValueError, TypeError, httpx.HTTPError) as error:
                cause = error.__cause__ or error  # `datasets` says only that an error occurred
                raise InputError(f"{where} cannot be read: {' '.join(str(cause).split())}") from error

    return cached_arrays(cache_dir, f"{name}-{split}", [name, subset, revision, split, dict(columns), found], make)


def number_ids(dataset: datasets.Dataset, column: str) -> NDArray[np.int64]:
    """Return each sample's id as its number in the sorted order of ids."""
    numbers = {value: number for number, value in enumerate(sorted(dataset.unique(column)))}
    return np.fromiter((numbers[value] for value in dataset[column]), dtype=np.int64, count=len(dataset))


def _find_parquet(path: str, split: str) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"dataset.path must be a folder with Parquet files, got {path}, which is no folder")
    files = sorted(folder.rglob("*.parquet"))
    chosen = [file for file in files if file.name.startswith(split) or file.parent.name == split]
    if not chosen:
        holds = ", ".join(str(file.relative_to(folder)) for file in files[:5]) or "none"
        raise InputError(
            f"dataset.path={path} must hold {split}*.parquet or {split}/*.parquet, at any depth; "
            f"its Parquet files are: {holds}"
        )
    return chosen


def _load_from_hub(name: str, subset: str | None, revision: str | None, split: str) -> datasets.Dataset:
    if _is_reachable(name):
        log.warning("getting split %s of %s from the Hugging Face Hub, once", split, name)
    else:
        datasets.config.HF_HUB_OFFLINE = True  # or it tries for 20 s before it looks for a copy on this machine
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except ConnectionError as error:
        raise HubUnreachableError(
            f"{name} is not on this machine and the Hugging Face Hub cannot be reached; connect once (it is then "
            "kept), or download its data files elsewhere and set dataset.path=DIR to their folder"
        ) from error


def _is_reachable(name: str) -> bool:
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_CONNECT_TIMEOUT_S)
    except HfHubHTTPError:
        return True  # it answered; `load_dataset` tells better what it refuses
    except (OSError, httpx.TransportError):
        return False
    return True


def _decode_images(dataset: datasets.Dataset, column: str) -> NDArray[np.uint8]:
    try:
        pictures = dataset.cast_column(column, datasets.Image())[column]
    except (TypeError, NotImplementedError) as error:
        raise InputError(f"dataset.image={column} must hold images, got {dataset.features[column]}") from error
    mode, (width, height) = pictures[0].mode, pictures[0].size
    if mode not in _CHANNELS:
        raise InputError(f"dataset.image={column} must hold grey or RGB images (modes L, RGB), got mode {mode}")
    pixels = np.empty((len(dataset), _CHANNELS[mode], height, width), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        if (picture.mode, picture.size) != (mode, (width, height)):
            raise InputError(
                f"dataset.image={column} must hold images of one size and mode, got {width} x {height} {mode} (the "
                f"first) and {picture.size[0]} x {picture.size[1]} {picture.mode} (number {i})"
            )
        pixels[i] = np.asarray(picture).reshape(height, width, -1).transpose(2, 0, 1)
    return pixels


def _labels(dataset: datasets.Dataset, column: str) -> NDArray[np.int64]:
    labels = np.asarray(dataset.with_format("numpy")[column][:])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"dataset.label={column} must hold class indices, got {dataset.features[column]}")
    return labels.astype(np.int64)
