"""Text of many speakers for next-character prediction."""

import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fedresearch.data.cache import Arrays
from fedresearch.data.hub import load_split, number_ids
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError

# The 80 characters of LEAF's language models (Caldas et al. 2018, arXiv:1812.01097), in its order.
LETTERS = "\n !\"&'(),-." + string.digits + ":;>?" + string.ascii_uppercase + "[]" + string.ascii_lowercase + "}"
UNKNOWN = len(LETTERS)  # any other character
LENGTH = 80


def load_shakespeare(
    *,
    name: str,
    cache_dir: str,
    test_fraction: float = 0.1,
    revision: str | None = None,
    path: str | None = None,
) -> Source:
    """Load LEAF's Shakespeare: 80 characters of one role's lines, and the character that follows.

    The test split is LEAF's: the last windows of each role, without the 79 before them that share text with the
    training windows. A role too short for test windows, which LEAF drops, is used for training.

    Parameters
    ----------
    name : str
        The dataset on the Hub, with columns ``character_id`` (a role in a play), ``x`` and ``y``.
    cache_dir : str
        Folder of the encoded text.
    test_fraction : float, in (0, 1)
        Share of each role's windows, the last ones, that is not used for training.
    revision : str or None
        A commit on the Hub; None: the newest one at the first loading, which is then kept.
    path : str or None
        Folder with the Hub's ``shakespeare.csv``; None: the Hub.

    Raises
    ------
    InputError
        If the data cannot be loaded or has the wrong format.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"dataset.test_fraction must be in (0, 1), got {test_fraction}; try dataset.test_fraction=0.1")
    files = None if path is None else [Path(path).expanduser() / "shakespeare.csv"]
    if files and not files[0].is_file():
        raise InputError(f"dataset.path must be the folder of shakespeare.csv, got {path}, which does not contain it")
    arrays = load_split(
        "train",
        _decode,
        columns={"natural_id": "character_id", "x": "x", "y": "y"},
        name=name,
        subset=None,
        revision=revision,
        files=files,
        cache_dir=cache_dir,
    )
    ids = arrays["natural_id"]
    counts = np.bincount(ids)
    order = np.argsort(ids, kind="stable")
    rank = np.empty_like(order)  # each window's rank among those of its role
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    num_train = np.maximum(1, ((1 - test_fraction) * counts).astype(np.int64))[ids]
    train, test = rank < num_train, rank >= num_train + LENGTH - 1
    if not test.any():
        raise InputError(
            f"dataset.test_fraction={test_fraction} leaves no test samples: the roles have at most {counts.max()} each"
        )

    def samples(rows: NDArray[np.bool_]) -> Samples:
        x, y = (torch.from_numpy(arrays[key][rows]).long() for key in ("x", "y"))
        return Samples(x, y, ids[rows])

    return Source(samples(train), samples(test))


def encode(text: str) -> NDArray[np.uint8]:
    """Return each character's index in ``LETTERS``, or ``UNKNOWN``."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return _INDEX[np.minimum(codes, len(_INDEX) - 1)]


_INDEX = np.full(129, UNKNOWN, dtype=np.uint8)  # the last entry is that of all other characters
_INDEX[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


def _decode(table: pa.Table) -> Arrays:
    x, y = np.empty((len(table), LENGTH), dtype=np.uint8), np.empty(len(table), dtype=np.uint8)
    for start in range(0, len(table), 10_000):
        batch = table.slice(start, 10_000).to_pydict()
        for column, length in (("x", LENGTH), ("y", 1)):
            if any(not isinstance(text, str) or len(text) != length for text in batch[column]):
                raise InputError(f"column {column} must hold texts of {length} characters, got others")
        stop = start + len(batch["x"])
        x[start:stop] = encode("".join(batch["x"])).reshape(-1, LENGTH)
        y[start:stop] = encode("".join(batch["y"]))
    return {"x": x, "y": y, "natural_id": number_ids(table["character_id"], "character_id")}
