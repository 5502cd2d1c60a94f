"""A run's directory: what it was, how it went and what it measured. The truth about a run; trackers only mirror it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError

RECORD = "run.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"


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
            (path / RECORD).open("x").close()  # of two starting at once, one gets here
        except FileExistsError:
            refuse_used(path)
            raise
        self._record: dict[str, Any] = {}
        self.update(status="running", started=now(), **record)
        self._metrics = (path / METRICS).open("x", encoding="utf-8")

    def update(self, **fields: Any) -> None:
        """Set fields of the record."""
        self._record |= fields
        self.write_text(RECORD, json.dumps(self._record, indent=2, default=str) + "\n")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a round's row; numbers that are not finite become null, which JSON can hold."""
        self._metrics.write(json.dumps({key: finite(value) for key, value in row.items()}) + "\n")
        self._metrics.flush()

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
    """Refuse a directory that holds a run.

    Raises
    ------
    InputError
        Naming the run's status.
    """
    if (path / RECORD).exists():
        try:
            status = json.loads((path / RECORD).read_text(encoding="utf-8"))["status"]
        except (ValueError, KeyError, TypeError):
            status = "unknown"
        raise InputError(
            f"{path} already holds a run (status: {status}), and nothing is overwritten; "
            "try another hydra.run.dir, or leave it out for a new directory"
        )


def finite(value: Any) -> Any:
    """Return the value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
