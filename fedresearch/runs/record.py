"""Reading a run's directory as it is found: running, finished or torn off. Imports neither torch nor flwr."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from filelock import Timeout

from fedresearch.errors import InputError
from fedresearch.locking import file_lock, is_removed_by_hand

RECORD = "run.json"
METRICS = "metrics.jsonl"
LOCK = ".lock"
# What a job of a sweep was told that could not become a run.
REFUSED = "refused.txt"

FORMAT = 1
# Statuses of a run of which running it again gives nothing new.
FINAL = ("finished", "diverged")

Row = dict[str, Any]


class Busy(InputError):
    """Another process is at work in a run's directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every other process off a run's directory. A dead process's lock is released.

    Raises
    ------
    Busy
        If another process has it.
    """
    lock = file_lock(directory / LOCK, timeout_s=1)
    try:
        with lock:
            try:
                yield
            finally:
                if not (directory / RECORD).exists():
                    (directory / LOCK).unlink(missing_ok=True)  # no run, no trace of one
    except Timeout:
        by_hand = f"; if there is none, remove {directory / LOCK}" * is_removed_by_hand(lock)
        raise Busy(f"{directory} is being run by another process; wait for it, or stop it{by_hand}") from None


def read_record(directory: Path) -> dict[str, Any]:
    """Return a run's record, checked.

    Raises
    ------
    InputError
        If there is none, or it is damaged or of another version.
    """
    path = directory / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{directory} holds no run: it has no {RECORD}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{path} has format {found}, and this version of fedresearch reads format {FORMAT}")
    if record.pop("sha256", None) != _sha256({name: value for name, value in record.items() if name != "format"}):
        raise InputError(f"{path} is damaged, or was edited: its content is not what its sha256 says")
    return record


def dump_record(record: Mapping[str, Any]) -> str:
    """Return a record as JSON that says its own SHA-256, of all but itself."""
    fields = {name: value for name, value in record.items() if name not in ("format", "sha256")}
    return json.dumps({"format": FORMAT, **fields, "sha256": _sha256(fields)}, indent=2, allow_nan=False) + "\n"


def read_rows(directory: Path) -> list[Row]:
    """Return the rows of a run's rounds, those that are whole: the last line may be half written.

    Raises
    ------
    InputError
        If another line is no row, or a round is missing or there twice.
    """
    path = directory / METRICS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    rows, _ = parse_rows(content, path)
    return rows


def refuse_lost_rows(directory: Path, record: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Refuse a run that has ended after more rounds than it has rows.

    Raises
    ------
    InputError
        With both numbers.
    """
    ended = (record.get("result") or {}).get("round", 0)
    if ended > len(rows):
        raise InputError(f"{directory / METRICS} is damaged: it has {len(rows)} rounds, and {RECORD} says {ended}")


def parse_rows(content: bytes, path: Path) -> tuple[list[Row], int]:
    """Return the whole rows of a file's content, and how many bytes they are; a last line that is none is left out.

    Raises
    ------
    InputError
        If a line that is not the last is no row, or a round is missing or there twice.
    """
    lines = content.split(b"\n")
    lines.pop()  # empty, or half written
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            if number == len(lines):
                lines.pop()
                break
            row = None
        if not isinstance(row, dict) or type(row.get("round")) is not int or row["round"] != number:
            raise InputError(f"{path} is damaged: line {number} is not the row of round {number}")
        rows.append(row)
    return rows, sum(len(line) + 1 for line in lines)


def untimed(row: Mapping[str, Any]) -> Row:
    """Return what of a row is equal between two runs of one config and seed."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def larger_is_better(column: str) -> bool:
    """Return whether a column is better the larger it is: accuracies are, losses and all else are not."""
    return "acc" in column


def state_of(directory: Path) -> str:
    """Return what has become of a run: its record's status, or ``missing``, ``refused``, ``killed`` or ``damaged``."""
    if not (directory / RECORD).exists():
        return "refused" if (directory / REFUSED).exists() else "missing"
    try:
        return standing(directory, read_record(directory))
    except InputError:
        return "damaged"


def standing(directory: Path, record: Mapping[str, Any]) -> str:
    """Return a record's status, or ``killed`` where it says that the run goes on, and nobody is at work in it.

    Who may not open the lock, as that of another user's run, cannot know, and is told what the record says.
    """
    status: str = record["status"]
    if status == "running":
        try:
            with locked(directory):
                # It may have ended since the record was read.
                return "killed" if read_record(directory)["status"] == "running" else status
        except (Busy, OSError):
            pass
    return status


def _sha256(fields: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(fields))  # keys that are no strings become such
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
