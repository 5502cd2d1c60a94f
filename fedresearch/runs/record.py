"""Reading a run's directory as it is found: running, finished or torn off. Imports neither torch nor flwr."""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from filelock import Timeout

from fedresearch.errors import InputError
from fedresearch.locking import file_lock, is_removed_by_hand
from fedresearch.runs.files import is_folder, read_bytes, why_no_folder

RECORD = "run.json"
METRICS = "metrics.jsonl"
LOCK = ".lock"
# The error of a sweep's job that could not become a run.
REFUSED = "refused.txt"

FORMAT = 1
# Statuses of a run of which running it again gives nothing new.
FINAL = ("finished", "diverged")

Row = dict[str, Any]

# Far beyond what a run writes, and far below what a machine holds.
_MAX_RECORD_BYTES, _MAX_METRICS_BYTES, _MAX_ROW_BYTES = 16_000_000, 256_000_000, 1_000_000
_MAX_DEPTH = 64  # of values in values; Python's own limit is about a thousand
_MAX_NUMBER = sys.float_info.max
# Which JSON can hold, and no file, figure or page; those that stand for the bytes of a path are left out.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class NoRun(InputError):
    """A directory holds no record."""


class Edited(InputError):
    """The rows are not those that the run ended with."""


class Busy(InputError):
    """Another process is at work in a run's directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every other process off a run's directory. A dead process's lock is released.

    Raises
    ------
    Busy
        If another process has it.
    InputError
        If there is no file in its place.
    """
    path = directory / LOCK
    lock = file_lock(path, timeout_s=1)
    try:
        lock.acquire()
    except Timeout:
        by_hand = f"; if there is none, remove {path}" * is_removed_by_hand(lock)
        raise Busy(f"{directory} is being run by another process; wait for it, or stop it{by_hand}") from None
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise
        raise InputError(f"{path} is not the file that a run locks; remove it") from None
    try:
        yield
    finally:
        if not (directory / RECORD).exists():
            path.unlink(missing_ok=True)  # no run, no trace of one
        lock.release()


def read_record(directory: Path) -> dict[str, Any]:
    """Return a run's record, checked.

    Raises
    ------
    InputError
        If there is none, or it is damaged or of another version.
    """
    path = directory / RECORD
    try:
        record = json.loads(read_bytes(path, _MAX_RECORD_BYTES).decode(), parse_constant=_refuse_constant)
        _refuse_extremes(record)
    except (FileNotFoundError, NotADirectoryError):
        raise NoRun(_no_run(directory)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{path} has format {found}, and this version of fedresearch reads format {FORMAT}")
    if record.pop("sha256", None) != _sha256({name: value for name, value in record.items() if name != "format"}):
        raise InputError(f"{path} is damaged, or was edited: its content is not what its sha256 says")
    return record


def refuse_no_run(*directories: Path) -> None:
    """Refuse directories that hold no run.

    Raises
    ------
    NoRun
        With one line for each, which names the newest runs below it or, if it does not exist, beside it.
    """
    missing = [directory for directory in directories if not os.path.lexists(directory / RECORD)]
    if missing:
        raise NoRun(*(f"{_no_run(directory)}; {_newest_runs(directory)}" for directory in missing))


def _no_run(directory: Path) -> str:
    return f"{directory} {why_no_folder(directory) or f'holds no run: it has no {RECORD}'}"


def _newest_runs(directory: Path) -> str:
    folder = directory if is_folder(directory) else directory.parent
    try:
        records = [path for below in ("", "*/", "*/*/") for path in folder.glob(below + RECORD)]
        records.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    except OSError:  # of a folder that was removed meanwhile
        records = []
    newest = ", ".join(str(path.parent) for path in records[:3])
    return f"the newest runs in {folder}: {newest}" if newest else "name a run's directory, such as outputs/DATE_TIME"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_extremes(value: Any) -> None:
    """Refuse values that Python reads as JSON and that no reader can use."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its values are nested more than {_MAX_DEPTH} deep")
        for one in level:
            if isinstance(one, int | float) and not abs(one) <= _MAX_NUMBER:
                raise ValueError("it has a number beyond all bounds")
            if isinstance(one, str) and _LONE_SURROGATE.search(one):
                raise ValueError("it has text that is not Unicode")
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in ((*node.keys(), *node.values()) if isinstance(node, dict) else node)
        ]


def dump_record(record: Mapping[str, Any]) -> str:
    """Return a record as JSON that says its own SHA-256, of all but itself."""
    fields = {name: value for name, value in record.items() if name not in ("format", "sha256")}
    return json.dumps({"format": FORMAT, **fields, "sha256": _sha256(fields)}, indent=2, allow_nan=False) + "\n"


def read_run(directory: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return a run's record and the rows of its rounds, the one held against the other where the run has ended.

    Raises
    ------
    InputError
        If either is damaged.
    Edited
        If the rows are not those that the run ended with.
    """
    record = read_record(directory)  # first: a run that ends meanwhile has more rows than it said, never less
    path = directory / METRICS
    content = read_rows_bytes(directory)
    rows, _ = parse_rows(content, path)
    result = record.get("result")
    ended = result.get("round", 0) if isinstance(result, dict) else 0
    if isinstance(ended, int) and ended > num_rounds(rows):
        raise InputError(f"{path} is damaged: it has {num_rounds(rows)} rounds, and {RECORD} says {ended}")
    pinned = record.get("metrics_sha256")
    is_other = record.get("status") != "running" and pinned not in (None, hashlib.sha256(content).hexdigest())
    if is_other and read_record(directory) == record:  # else it was resumed meanwhile
        raise Edited(f"{path} is damaged, or was edited: its content is not what metrics_sha256 in {RECORD} says")
    return record, rows


def read_rows(directory: Path) -> list[Row]:
    """Return the rows of a run's rounds, those that are whole: the last line may be half written.

    Raises
    ------
    InputError
        If a line before the last is not a row, or a round is missing or occurs twice.
    """
    rows, _ = parse_rows(read_rows_bytes(directory), directory / METRICS)
    return rows


def read_rows_bytes(directory: Path) -> bytes:
    """Return the content of ``metrics.jsonl``; nothing where there is no such file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return read_bytes(directory / METRICS, _MAX_METRICS_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def parse_rows(content: bytes, path: Path) -> tuple[list[Row], int]:
    """Return the whole rows of a file's content, and their number of bytes; a last line that is not whole is left out.

    Raises
    ------
    InputError
        If a line before the last is not a row, or a round is missing or occurs twice.
    """
    lines = content.split(b"\n")
    lines.pop()  # empty, or half written
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = None if len(line) > _MAX_ROW_BYTES else orjson.loads(line)
            if line.count(b"{") + line.count(b"[") > _MAX_DEPTH:  # or it cannot be nested deeper
                _refuse_extremes(row)
        except orjson.JSONDecodeError:
            if number == len(lines):
                lines.pop()
                break
            row = None
        except ValueError:
            row = None
        due = [rows[-1]["round"] + 1] if rows else [0, 1]
        if not isinstance(row, dict) or type(row.get("round")) is not int or row["round"] not in due:
            raise InputError(f"{path} is damaged: line {number} is not the row of round {due[-1]}")
        rows.append(row)
    return rows, sum(len(line) + 1 for line in lines)


def num_rounds(rows: Sequence[Row]) -> int:
    """Return the number of rounds that rows are of; the row of round 0, of the initial model, does not count."""
    return rows[-1]["round"] if rows else 0


def untimed(row: Mapping[str, Any]) -> Row:
    """Return what of a row is equal between two runs of one config and seed."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def state_of(directory: Path) -> str:
    """Return what has become of a run: its record's status, or ``missing``, ``refused``, ``killed`` or ``damaged``."""
    try:
        return state_of_record(directory, read_record(directory))
    except NoRun:
        return "refused" if (directory / REFUSED).exists() else "missing"
    except InputError:
        return "damaged"


def state_of_record(directory: Path, record: Mapping[str, Any]) -> str:
    """Return a record's status; ``killed`` if the status is ``running`` and no process is at work in the directory.

    A user who may not open the lock, such as that of another user's run, gets the record's status.
    """
    status = record.get("status")
    if status == "running":
        try:
            with locked(directory):
                # It may have ended since the record was read.
                return "killed" if read_record(directory).get("status") == "running" else status
        except (Busy, OSError):
            pass
    return status if isinstance(status, str) else "damaged"


def _sha256(fields: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(fields))  # turns all keys into strings
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
