"""The keys of the records in a message, and arrays in and out of them."""

import hashlib

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch.nn import Module

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
NUM_STEPS = "num-steps"
TRAIN_LOSS = "train_loss"
EVAL_LOSS = "eval_loss"
EVAL_ACC = "eval_acc"


def load_arrays(model: Module, arrays: ArrayRecord) -> None:
    """Copy a record's arrays into a model's parameters and buffers."""
    model.load_state_dict(arrays.to_torch_state_dict())


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
    for name, array in arrays.items():
        dtype = np.dtype(reference[name].dtype)
        if np.dtype(array.dtype) == dtype:
            cast[name] = array
        else:
            values = array.numpy()
            cast[name] = Array(np.asarray(np.rint(values) if dtype.kind in "iu" else values).astype(dtype))
    return ArrayRecord(cast)


def sha256(arrays: ArrayRecord) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name].numpy()
        sha.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def flatten(arrays: ArrayRecord) -> NDArray[np.float64]:
    """Return all floating-point arrays as one vector, in double precision."""
    values = (arrays[name].numpy() for name in sorted(arrays))
    parts = [v.ravel().astype(np.float64) for v in values if v.dtype.kind == "f"]
    return np.concatenate(parts) if parts else np.zeros(0)


def count_bytes(messages: list[Message]) -> int:
    """Return the payload of messages: arrays as they are sent, metrics and config values."""
    return sum(_content_bytes(message.content) for message in messages if message.has_content())


def _content_bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())
