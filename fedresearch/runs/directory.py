"""A run's directory: what it was, how it went and what it measured. The truth about a run; trackers only mirror it."""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError
from fedresearch.runs.record import METRICS, RECORD, dump_record

MODEL = "model.safetensors"
PARTITION = ("partition.csv", "partition.png")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name, synced to disk, then renamed.

    Parameters
    ----------
    path : Path
        Where the file will be.
    write : callable
        Writes the content to the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class RunDirectory:
    """One run's directory, claimed for it alone.

    ``run.json`` holds the record: status, config, versions, digests, result. ``metrics.jsonl`` holds a row of numbers
    for each round, written as the round ends.

    Parameters
    ----------
    path : Path
        The directory; made when missing.
    record : mapping
        What is known at the start, as plain JSON values.

    Raises
    ------
    InputError
        If the directory holds a run already.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        try:
            # Of two starting at once, one gets this file. Unbuffered: what is written is written, and can be cut off.
            self._metrics = (path / METRICS).open("xb", buffering=0)
        except FileExistsError:
            refuse_used(path)
            raise
        self._record: dict[str, Any] = {}
        try:
            self.update(status="running", started=now(), **record)
        except OSError:
            (path / METRICS).unlink()  # the claim: no run, no trace of one
            raise

    def update(self, **fields: Any) -> None:
        """Set fields of the record."""
        self._record |= fields
        self.write_text(RECORD, dump_record(self._record))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a round's row, whole or not at all; numbers that are not finite become null, which JSON can hold."""
        line = json.dumps(finite_row(row), allow_nan=False).encode() + b"\n"
        size = self._metrics.tell()
        try:
            if self._metrics.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._metrics.truncate(size)
            raise

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        write_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a binary file of the run, whole or not at all."""
        write_whole(self.path / name, lambda path: path.write_bytes(content))

    def close(self, status: str, **fields: Any) -> None:
        """Record how the run ended."""
        self._metrics.close()
        self.update(status=status, ended=now(), **fields)


def refuse_used(path: Path) -> None:
    """Refuse a directory that holds a run, or files under the names of a run's.

    Raises
    ------
    InputError
        Naming the run's status, or the files.
    """
    found = [name for name in (RECORD, METRICS, MODEL, *PARTITION) if (path / name).exists()]
    if not found:
        return
    try:
        status = json.loads((path / RECORD).read_text(encoding="utf-8"))["status"]
        holds = f"a run (status: {status})"
    except (OSError, ValueError, KeyError, TypeError):
        holds = " and ".join(found)
    raise InputError(
        f"{path} already holds {holds}, and nothing is overwritten; "
        "try another hydra.run.dir, or leave it out for a new directory"
    )


def finite_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None for each number that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
