"""The keys of the records in a message, and arrays in and out of them."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.floating[Any]]

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
UNIFORM = "uniform"  # 1: a weight that is the same for every client
NUM_STEPS = "num-steps"
LR = "lr"
NUM_CLIENTS = "num-clients"  # that hold training data, drawn or not
TRAIN_LOSS = "train_loss"
EVAL_LOSS = "eval_loss"
EVAL_ACC = "eval_acc"
PERSONAL_LOSS = "personal_loss"
PERSONAL_ACC = "personal_acc"


def tensors(records: RecordDict, key: str) -> dict[str, Tensor]:
    """Return the arrays at a key as tensors; none where there is no such record."""
    return dict(records.array_records[key].to_torch_state_dict()) if key in records else {}


def values(arrays: ArrayRecord) -> dict[str, Values]:
    """Return a record's arrays as NumPy's, by name."""
    return {name: array.numpy() for name, array in arrays.items()}


def record(values: Mapping[str, Values]) -> ArrayRecord:
    """Return NumPy arrays, or scalars, as a record."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


def number(record: MetricRecord | ConfigRecord, key: str) -> int | float:
    """Return the number at a key; records may hold other types too."""
    value = record[key]
    assert isinstance(value, int | float), f"{key} must be a number, got {value!r}"
    return value


def cast_like(arrays: ArrayRecord, reference: ArrayRecord) -> ArrayRecord:
    """Return the arrays in the dtypes of another record's; integers are rounded to the nearest.

    Flower's averages turn the integer buffers of BatchNorm into floats, and some strategies promote float32.
    """
    cast = {}
    for name, value in values(arrays).items():
        dtype = np.dtype(reference[name].dtype)
        cast[name] = (
            value if value.dtype == dtype else np.asarray(np.rint(value) if dtype.kind in "iu" else value, dtype)
        )
    return record(cast)


def sha256(arrays: ArrayRecord) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name].numpy()
        sha.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def flatten(arrays: ArrayRecord, names: Collection[str]) -> NDArray[np.float64]:
    """Return the arrays of some names as one vector, in double precision."""
    parts = [arrays[name].numpy().ravel().astype(np.float64) for name in sorted(arrays) if name in names]
    return np.concatenate(parts) if parts else np.zeros(0)


def count_bytes(messages: list[Message]) -> int:
    """Return the payload of messages: arrays as they are sent, metrics and config values."""
    return sum(_content_bytes(message.content) for message in messages if message.has_content())


def _content_bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())
