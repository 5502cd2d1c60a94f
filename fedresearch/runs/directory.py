"""A run's directory: what it was, how it went and what it measured. The truth about a run; trackers only mirror it."""

import errno
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from fedresearch.dotted_keys import differing
from fedresearch.errors import InputError
from fedresearch.runs.client_table import CLIENTS, cut
from fedresearch.runs.files import read_bytes
from fedresearch.runs.provenance import peak_memory_bytes
from fedresearch.runs.record import METRICS, RECORD, Row, dump_record, parse_rows, read_rows_bytes, untimed

MODEL = "model.safetensors"
FAILURES = "failures.jsonl"
CONFUSION = "confusion.csv"
PARTITION = ("partition.csv", "partition.svg")
_CHECKPOINTS = "checkpoints"  # as in runs/checkpoint.py, which imports this module
_MAX_FAILURES_BYTES = 256_000_000
# Ends the name of a file that is being written.
_UNFINISHED = ".tmp"


@dataclass(frozen=True)
class History:
    """How far ``metrics.jsonl`` goes: the last round, bytes, and the SHA-256 of these."""

    num_rounds: int = 0
    num_bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Unwritable(InputError):
    """A file of a run cannot be written, as on a disk that is full."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise :class:`Unwritable` for what the system refuses."""
    try:
        yield
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror or error}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name, synced to disk, then renamed.

    Parameters
    ----------
    path : Path
        Where the file will be.
    write : callable
        Writes the content to the path that it is given.

    Raises
    ------
    Unwritable
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    with writing(path):
        try:
            write(temporary)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)  # the name, too, is to outlive a loss of power
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDirectory:
    """One run's directory, which this process has locked.

    ``run.json`` holds the record: status, config, versions, digests, result. ``metrics.jsonl`` holds a row of numbers
    for each round, written as the round ends, and ``clients.jsonl`` a line of what each of its clients did.
    ``failures.jsonl``, where a client failed, holds what it raised.

    Parameters
    ----------
    path : Path
        The directory; made when missing.
    record : mapping
        What is known at the start, as plain JSON values.
    after : History
        The rounds after which to resume. Later rounds that have a row already run again and must give the same numbers.

    Raises
    ------
    InputError
        If ``metrics.jsonl`` is damaged, or is not what it was when the checkpoint was written.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], after: History) -> None:
        self.path = path
        self._num_rounds, self._num_bytes = after.num_rounds, after.num_bytes
        self._record: dict[str, Any] = {}
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / _CHECKPOINTS):  # only where a run writes, and only what write_whole names
            for unfinished in folder.glob(f".*.[0-9]*{_UNFINISHED}"):
                unfinished.unlink()
        metrics = self._metrics_path = path / METRICS
        content = read_rows_bytes(path)
        _, size = parse_rows(content, metrics)
        self._sha256 = hashlib.sha256(content[: after.num_bytes])
        if self._sha256.hexdigest() != after.sha256:
            raise InputError(
                f"{metrics} is not what it was when the checkpoint of round {after.num_rounds} was written; "
                "bring it back, or start a new run"
            )
        # Their lines are kept as they are, for the next checkpoint is of the file's bytes.
        self._known = deque(line + b"\n" for line in content[after.num_bytes : size].split(b"\n")[:-1])
        self._clients: BinaryIO | None = None
        self._clients_path = path / CLIENTS
        self._clients_sha256 = cut(self._clients_path, after.num_rounds)
        self._forget_failures()
        ended = dict.fromkeys(("ended", "error", "result", "metrics_sha256", "clients_sha256"))
        self.update(**{**record, "status": "running", **ended})
        # Unbuffered: what is written is written, and can be cut off.
        self._metrics = metrics.open("ab", buffering=0)
        self._metrics.truncate(size)

    def _forget_failures(self) -> None:
        """Remove the failures of the rounds that will run again."""
        path = self.path / FAILURES
        if path.exists():
            lines = read_bytes(path, _MAX_FAILURES_BYTES).decode(errors="replace").splitlines(keepends=True)
            self.write_text(FAILURES, "".join(line for line in lines if self._is_of_the_past(line)))

    def _is_of_the_past(self, line: str) -> bool:
        try:
            return bool(json.loads(line)["round"] <= self._num_rounds)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False

    def update(self, **fields: Any) -> None:
        """Set fields of the record."""
        self._record |= fields
        self.write_text(RECORD, dump_record(self._record))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a round's row, whole or not at all; numbers that are not finite become null, which JSON can hold.

        Raises
        ------
        InputError
            If the round's row is there, and another.
        Unwritable
            If there is no room for it.
        """
        line = _line(row)
        if self._known:
            _refuse_other(json.loads(line), json.loads(self._known[0]))
            line = self._known.popleft()
        else:
            self._append(line)
        self._sha256.update(line)
        self._num_rounds, self._num_bytes = row["round"], self._num_bytes + len(line)

    @property
    def history(self) -> History:
        """The rounds that are logged."""
        return History(self._num_rounds, self._num_bytes, self._sha256.hexdigest())

    def _append(self, line: bytes) -> None:
        with writing(self._metrics_path):
            try:
                if self._metrics.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._metrics.truncate(self._num_bytes)
                raise

    def log_clients(self, server_round: int, table: Mapping[str, Any]) -> None:
        """Append a round's line of the clients' table, on disk with the next checkpoint or the end of the run.

        Numbers that are not finite become null.

        Raises
        ------
        Unwritable
            If there is no room for it.
        """
        line = _line({"round": server_round, **table})
        with writing(self._clients_path):
            if self._clients is None:
                self._clients = self._clients_path.open("ab")
            self._clients.write(line)
        self._clients_sha256.update(line)

    def log_failure(self, server_round: int, partition_id: int, doing: str, error: str) -> None:
        """Keep what a client raised."""
        failure = {"round": server_round, "partition_id": partition_id, "doing": doing, "error": error}
        path = self.path / FAILURES
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(failure) + "\n")

    def sync(self) -> None:
        """Let the rows so far, and the clients' table, outlive a loss of power."""
        with writing(self._metrics_path):
            os.fsync(self._metrics.fileno())
        if self._clients:
            with writing(self._clients_path):
                self._clients.flush()
                os.fsync(self._clients.fileno())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        write_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def close(self, status: str, **fields: Any) -> None:
        """Record how the run ended."""
        self._metrics.close()
        if self._clients:
            with writing(self._clients_path):
                self._clients.close()
        for line in self._known:  # of rounds that were not run again
            self._sha256.update(line)
        self.update(
            status=status,
            ended=now(),
            metrics_sha256=self._sha256.hexdigest(),
            clients_sha256=self._clients_sha256.hexdigest(),
            peak_memory_bytes=peak_memory_bytes(),
            **fields,
        )


def refuse_used(path: Path) -> None:
    """Refuse a directory that holds a run, or files under the names of a run's.

    Raises
    ------
    InputError
        Naming the run's status, or the files.
    """
    found = [name for name in (RECORD, METRICS, CLIENTS, MODEL, *PARTITION) if (path / name).exists()]
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


def _line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON; numbers that are not finite become null."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _refuse_other(row: Row, known: Row) -> None:
    """Refuse a row that is not the known one of its round, times aside."""
    first = next(differing(untimed(known), untimed(row)), None)
    if first:
        key, was, is_ = first
        raise InputError(
            f"round {row['round']} differs from before: {key} is {is_} and was {was}; resume with the code, "
            "the versions and the processor that run.json names, or start a new run"
        )


def finite_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None for each number that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
