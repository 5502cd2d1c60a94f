"""A cache on disk for arrays that are costly to make."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from fedresearch.errors import InputError, reason
from fedresearch.locking import file_lock

log = logging.getLogger(__name__)

# Seconds after which a waiting process logs a warning.
_WARN_AFTER_S = 60

Arrays = Mapping[str, NDArray[Any]]


def cached_arrays(cache_dir: str | Path, name: str, key: object, make: Callable[[], Arrays]) -> Arrays:
    """Return the cached arrays of ``name`` and ``key``; make and cache them if they are missing.

    Concurrent processes make them once. An entry is one ``.npz`` file, renamed into place when complete. Its checksums
    are verified at each reading, and a damaged entry is made again.

    Parameters
    ----------
    cache_dir : path
        Folder of the entries; it is created if missing.
    name : str
        The readable beginning of the entry's name.
    key : object
        Everything on which the arrays depend, as a JSON value.
    make : callable
        Returns the arrays by name.

    Raises
    ------
    InputError
        If the entry cannot be written.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    entry = Path(cache_dir).expanduser() / f"{name.replace('/', '-')}-{digest}.npz"
    if (arrays := _read(entry)) is not None:
        return arrays
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _waiting_for(entry.with_name(f"{entry.name}.lock")):
            if (arrays := _read(entry)) is None:
                arrays = make()
                _write(entry, arrays)
            return arrays
    except OSError as error:
        raise InputError(f"cache_dir={cache_dir} cannot be written: {reason(error)}; try cache_dir=DIR") from error


@contextmanager
def _waiting_for(path: Path) -> Iterator[None]:
    lock = file_lock(path)
    try:
        lock.acquire(timeout=_WARN_AFTER_S)
    except Timeout:
        log.warning("waiting for another process that makes the same arrays; if none runs, remove %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(entry: Path) -> Arrays | None:
    try:
        return read_arrays(entry)
    except FileNotFoundError:
        return None
    except Exception as error:
        log.warning("%s is damaged (%s) and is made again", entry, error)
        return None


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of an ``.npz`` file.

    Raises
    ------
    Exception
        One of some ten types of zipfile and NumPy, if the file is missing or damaged.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("an entry is not an array")  # NumPy returns what else it finds as bytes
    return arrays


def _write(entry: Path, arrays: Arrays) -> None:
    unfinished = entry.with_suffix(".tmp")  # one name is enough, since the lock is held
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own arguments
        unfinished.replace(entry)
    finally:
        unfinished.unlink(missing_ok=True)
