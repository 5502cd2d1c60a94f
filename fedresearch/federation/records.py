"""The keys of a message's records, and conversions of arrays to and from records."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedresearch.errors import InputError
from fedresearch.federation.held_array import HeldArray
from fedresearch.local.update import Tensors

Values = NDArray[np.floating[Any]]

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
UNIFORM = "uniform"  # always 1: the same weight for every client
NUM_STEPS = "num-steps"
SERVER_ROUND = "server-round"
LR = "lr"
NUM_CLIENTS = "num-clients"  # with training data, drawn or not
TRAIN_LOSS = "train_loss"
EVAL_LOSS = "eval_loss"  # other metrics of the global model have their own names
PERSONAL = "personal/"  # before the names of what is measured of a client's own model


def tensors(records: RecordDict, key: str) -> dict[str, Tensor]:
    """Return the arrays at a key as tensors; an empty dict if the record is missing."""
    return dict(records.array_records[key].to_torch_state_dict()) if key in records else {}


def values(arrays: ArrayRecord) -> dict[str, Values]:
    """Return a record's arrays as NumPy's, by name."""
    return {name: array.numpy() for name, array in arrays.items()}


def arrays_of(content: RecordDict) -> ArrayRecord:
    """Return a content's model, faster than ``content.array_records``, which reads and checks all records."""
    record = content[ARRAYS]
    assert isinstance(record, ArrayRecord)
    return record


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return a content's metrics, faster than ``content.metric_records``."""
    record = content[METRICS]
    assert isinstance(record, MetricRecord)
    return record


def config_of(content: RecordDict) -> ConfigRecord:
    """Return the numbers that a content carries for the clients."""
    record = content[CONFIG]
    assert isinstance(record, ConfigRecord)
    return record


def view(array: Array) -> NDArray[Any]:
    """Return an array as a NumPy array for reading only."""
    return array.held if isinstance(array, HeldArray) else array.numpy()


def is_finite(content: RecordDict) -> bool:
    """Return whether all arrays are finite."""
    return all(
        bool(np.isfinite(view(array)).all())
        for record in content.values()  # faster than `content.array_records`
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )


def array_record(values: Mapping[str, ArrayLike], copy: bool = True) -> ArrayRecord:
    """Return NumPy arrays, or scalars, as a record: copies of them, or themselves if nobody may change them."""
    record = ArrayRecord()
    for name, value in values.items():
        record[name] = HeldArray(value, copy)
    return record


def check_arrays(source: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a model whose arrays differ from the expected ones in names or shapes, or are not real numbers.

    Raises
    ------
    InputError
        With what differs.
    """
    if found.keys() != expected.keys():
        different = sorted(found.keys() ^ expected.keys())
        raise InputError(f"{source} must have the arrays of the global model; different: {', '.join(different)}")
    for name, array in found.items():
        if tuple(array.shape) != tuple(expected[name].shape):
            raise InputError(f"{source} must have {name} of shape {expected[name].shape}, got {array.shape}")
        if np.dtype(array.dtype).kind not in "biuf":
            raise InputError(f"{source} must have {name} of real numbers, got {array.dtype}")


def tensor_record(tensors: Tensors) -> ArrayRecord:
    """Return copies of tensors as a record."""
    return array_record({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def number(record: MetricRecord | ConfigRecord, key: str) -> int | float:
    """Return the number at a key; records may also hold values of other types."""
    value = record[key]
    assert isinstance(value, int | float), f"{key} must be a number, got {value!r}"
    return value


def cast_like(arrays: ArrayRecord, reference: ArrayRecord) -> ArrayRecord:
    """Return a copy of a record with arrays in the dtypes of another record's; integers are rounded to the nearest.

    Flower's averages turn the integer buffers of BatchNorm into floats, and some strategies promote float32. A
    ``HeldArray`` that has its dtype is shared and not copied, for nobody can write into it.
    """
    cast = arrays.copy()
    for name, array in arrays.items():
        if isinstance(array, HeldArray) and array.dtype == reference[name].dtype:
            continue
        value, dtype = view(array), np.dtype(reference[name].dtype)
        is_rounded = value.dtype != dtype and dtype.kind in "iu"
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which the round loop reports
            cast[name] = HeldArray(np.asarray(np.rint(value) if is_rounded else value, dtype))
    return cast


def sha256(arrays: ArrayRecord) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        values = view(arrays[name])
        sha.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        sha.update(np.ascontiguousarray(values).data)
    return sha.hexdigest()


def bytes_of(messages: Iterable[Message]) -> list[int]:
    """Return the payload of each message in bytes: serialised arrays, metrics and config values; 0 of an error."""
    contents = [message.content if message.has_content() else None for message in messages]
    # The messages of a round share one content, whose size is computed once.
    sizes = {key: content_bytes(content) for key, content in {id(each): each for each in contents if each}.items()}
    return [sizes.get(id(content), 0) for content in contents]


def content_bytes(content: RecordDict) -> int:
    """Return the payload of a content in bytes."""
    return sum(
        sum(len(name) + _array_bytes(array) for name, array in record.items())
        if isinstance(record, ArrayRecord)
        else record.count_bytes()
        for record in content.values()
    )


def _array_bytes(array: Array) -> int:
    return array.num_bytes if isinstance(array, HeldArray) else len(array.data)
