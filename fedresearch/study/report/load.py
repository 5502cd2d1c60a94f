"""Find runs in any state, and read their rows as columns of numbers."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.runs import loaded
from fedresearch.runs.files import refuse_no_folders
from fedresearch.runs.record import RECORD, REFUSED, Row
from fedresearch.study.sweep.status import JOBS, list_jobs

Column = NDArray[np.float64]


@dataclass(frozen=True)
class LoadedRun(loaded.Run):
    """A run with its rows as columns of numbers.

    Parameters
    ----------
    columns : mapping
        Column of ``metrics.jsonl`` to float64 (rows,); NaN where a row has no number.
    """

    columns: Mapping[str, Column]

    @property
    def num_rounds(self) -> int:
        """The number of rounds so far; the evaluation of the initial model does not count."""
        return int(self.columns["round"][-1]) if self.columns else 0

    @property
    def may_grow(self) -> bool:
        """Whether it is under way, or is to come."""
        return self.state in ("running", "missing")

    def column(self, name: str) -> Column:
        """Return a column, float64 (rows,); NaN in every row if the run does not have it."""
        found = self.columns.get(name)
        return np.full(len(self.columns.get("round", ())), np.nan) if found is None else found


def load(paths: Sequence[Path]) -> list[LoadedRun]:
    """Return all runs that are found at or below some directories.

    Raises
    ------
    InputError
        As :func:`find_runs`.
    """
    return [_load(directory) for directory in find_runs(paths)]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the directories of runs at or below some directories, each once.

    Jobs of sweeps that are not runs yet are among them.

    Raises
    ------
    InputError
        If a directory does not exist, a folder cannot be read, or there is no run.
    """
    refuse_no_folders(paths, "name a directory with runs or sweeps, such as outputs/sweep_DIGEST")
    walked: set[Path] = set()
    directories = {os.path.realpath(directory): directory for path in paths for directory in _directories(path, walked)}
    if not directories:
        raise InputError(f"no run in {', '.join(map(str, paths))}; a run's directory holds {RECORD}")
    return [*directories.values()]


def _directories(path: Path, walked: set[Path]) -> Iterator[Path]:
    """Yield the directories of runs at or below a path, also through links, without folders walked before."""
    for folder, subfolders, files in os.walk(path, onerror=_refuse, followlinks=True):
        subfolders.sort()
        real = Path(folder).resolve()
        if real in walked:
            subfolders.clear()
            continue
        walked.add(real)
        if RECORD in files or REFUSED in files:
            yield Path(folder)
            subfolders.clear()
        elif JOBS in files:
            yield from (directory for _, directory in list_jobs(Path(folder)))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _load(directory: Path) -> LoadedRun:
    run, rows = loaded.load(directory)
    return LoadedRun(**vars(run), columns=_columns(rows))


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Return each column of numbers with a value for each row; NaN where it is null or missing."""
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        kinds = {*map(type, values)} - {type(None)}
        if kinds and kinds <= {int, float, bool}:
            columns[name] = np.array(values, dtype=np.float64)  # None becomes NaN
    return columns
