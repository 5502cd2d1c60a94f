"""The clients' table of a run: ``clients.jsonl`` has a line for each round, with the columns of its clients."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fedresearch.errors import InputError
from fedresearch.runs.files import read_bytes
from fedresearch.runs.record import RECORD, read_record

if TYPE_CHECKING:
    from pandas import DataFrame

CLIENTS = "clients.jsonl"
_PHASES = ("train", "evaluate")
_MAX_BYTES = 8_000_000_000


def cut(path: Path, num_rounds: int) -> "hashlib._Hash":
    """Cut off the lines of later rounds, and a last line that is not whole; return the SHA-256 of what is left.

    Raises
    ------
    InputError
        If a line before the last is damaged.
    """
    sha256, size = hashlib.sha256(), 0
    if path.exists():
        for line, row in _lines(path):
            if row["round"] > num_rounds:
                break
            sha256.update(line)
            size += len(line)
        os.truncate(path, size)
    return sha256


def load_clients(directory: Path) -> "DataFrame":
    """Do as :func:`fedresearch.load_clients`."""
    import pandas as pd

    path = directory / CLIENTS
    record = read_record(directory)
    if not path.exists():
        raise InputError(f"{directory} holds no {CLIENTS}: a run writes it unless clients_table=false")
    sha256, lines = hashlib.sha256(), []
    for line, row in _lines(path):
        sha256.update(line)
        lines.append(row)
    _refuse_edited(path, record, sha256.hexdigest())
    try:
        train, evaluate = (pd.DataFrame(_columns(lines, phase)) for phase in _PHASES)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return train.merge(evaluate, on=["round", "partition_id"], how="outer", sort=True)


def last_evaluation(directory: Path, record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of the clients that evaluated last, without reading all rounds; empty where there are none.

    Raises
    ------
    InputError
        If the table is damaged, or was edited.
    """
    path = directory / CLIENTS
    if not path.exists():
        return {}
    content = read_bytes(path, _MAX_BYTES)
    _refuse_edited(path, record, hashlib.sha256(content).hexdigest())
    for line in reversed(content.split(b"\n")[:-1]):
        try:
            if evaluated := orjson.loads(line).get("evaluate"):
                return dict(evaluated)
        except (ValueError, TypeError, AttributeError):
            raise InputError(f"{path} is damaged") from None
    return {}


def _refuse_edited(path: Path, record: Mapping[str, Any], sha256: str) -> None:
    if record.get("status") != "running" and record.get("clients_sha256") not in (None, sha256):
        raise InputError(f"{path} is damaged, or was edited: its content is not what clients_sha256 in {RECORD} says")


def _columns(lines: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Return the columns of one phase over all rounds; NaN where a client has no number."""
    import numpy as np

    parts = [(row["round"], _arrays(row[phase])) for row in lines if phase in row]
    names = dict.fromkeys(("partition_id", *(name for _, arrays in parts for name in arrays)))
    columns: dict[str, list[Any]] = {"round": [np.empty(0, int)], **{name: [np.empty(0)] for name in names}}
    for server_round, arrays in parts:
        num_clients = len(arrays["partition_id"])
        columns["round"].append(np.full(num_clients, server_round))
        for name in names:
            columns[name].append(arrays.get(name, np.full(num_clients, np.nan)))
    table = {name: np.concatenate(values) for name, values in columns.items()}
    return {**table, "partition_id": table["partition_id"].astype(int)}


def _arrays(columns: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {name: np.array(values, np.float64) for name, values in columns.items()}


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the whole lines of a file and the rows that they hold; a last line that is not whole is left out.

    Raises
    ------
    InputError
        If a line before the last is not a row of a later round than the one before.
    """
    lines = read_bytes(path, _MAX_BYTES).split(b"\n")
    lines.pop()  # empty, or not whole
    last = 0
    for number, line in enumerate(lines, start=1):
        try:
            row = orjson.loads(line)
            is_next = type(row["round"]) is int and row["round"] > last
        except (ValueError, TypeError, KeyError, IndexError):
            is_next = False
        if not is_next:
            if number == len(lines):
                return
            raise InputError(f"{path} is damaged: line {number} is not the line of a round; restore it, or remove it")
        last = row["round"]
        yield line + b"\n", row
