"""Finding runs, in whatever state they are, and reading their rows as columns of numbers."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.runs import loaded
from fedresearch.runs.record import RECORD, REFUSED, Row
from fedresearch.study.sweep.status import JOBS, listed

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Run(loaded.Run):
    """A run and its numbers.

    Parameters
    ----------
    columns : mapping
        Column of ``metrics.jsonl`` to float64 (rounds,); NaN where a round has no number.
    """

    columns: Mapping[str, Column]

    @property
    def num_rounds(self) -> int:
        """How many rounds it has so far."""
        return len(self.columns.get("round", ()))

    def column(self, name: str) -> Column:
        """Return a column, float64 (rounds,); NaN in every round where the run does not have it."""
        return self.columns.get(name, np.full(self.num_rounds, np.nan))


def load(paths: Sequence[Path]) -> list[Run]:
    """Return all runs at or below some directories, and the jobs of sweeps that are not runs yet, each once.

    Raises
    ------
    InputError
        If a directory does not exist, a folder below one cannot be read, or none of them holds a run.
    """
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no directory; give those of runs or of sweeps, such as outputs/sweep_DIGEST")
    walked: set[Path] = set()
    directories = {os.path.realpath(directory): directory for path in paths for directory in _directories(path, walked)}
    if not directories:
        raise InputError(f"no run in {', '.join(map(str, paths))}; a run's directory holds {RECORD}")
    return [_load(directory) for directory in directories.values()]


def _directories(path: Path, walked: set[Path]) -> Iterator[Path]:
    """Yield the directories of runs at or below a path, through links too, but for what was walked already."""
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
            yield from (directory for _, directory in listed(Path(folder)))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _load(directory: Path) -> Run:
    run, rows = loaded.load(directory)
    return Run(**vars(run), columns=_columns(rows))


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Return a value a round of every column that is of numbers, NaN for those that are null or not there."""
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        kinds = {*map(type, values)} - {type(None)}
        if kinds and kinds <= {int, float, bool}:
            columns[name] = np.array(values, dtype=np.float64)  # None becomes NaN
    return columns
