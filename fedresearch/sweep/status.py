"""What has become of a sweep's jobs, read from its directory."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedresearch.errors import InputError
from fedresearch.runs.record import RECORD, REFUSED, read_record, read_rows, state_of

# The list of a sweep's jobs, known before they start.
JOBS = "sweep.json"

# What is shown of a job's last round: the first that any job has.
_FIGURES = ("eval/accuracy", "eval/loss")


@dataclass(frozen=True)
class Status:
    """What has become of one job: ``state`` as :func:`fedresearch.runs.record.state_of` says, ``error`` "" for none."""

    overrides: list[str]
    name: str
    state: str
    rounds: str
    figures: dict[str, Any]
    error: str

    @property
    def failed(self) -> bool:
        """Whether somebody has to look at it."""
        return bool(self.error) or self.state == "damaged"


def show(directory: Path) -> bool:
    """Print a sweep's jobs, how many are in which state, and the errors; return whether any failed.

    Raises
    ------
    InputError
        If the directory holds neither a list of jobs nor any job.
    """
    jobs = read(directory)
    figure = next((name for name in _FIGURES if any(name in job.figures for job in jobs)), _FIGURES[0])
    table = new_table("job", "directory", "state", "rounds", figure)
    for job, words in zip(jobs, swept([job.overrides for job in jobs]), strict=True):
        value = job.figures.get(figure)
        table.add_row(" ".join(words), job.name, job.state, job.rounds, "" if value is None else f"{value:.4f}")
    print_table(table)
    print(", ".join(f"{number} {state}" for state, number in Counter(job.state for job in jobs).items()), end="")
    print(f" in {directory}", flush=True)
    for job in jobs:
        if job.error:
            print(f"{job.name}: {job.error.splitlines()[-1]}", flush=True)
    return any(job.failed for job in jobs)


def read(directory: Path) -> list[Status]:
    """Return what has become of the jobs that the directory lists, or where it has no list, of those that are there.

    Raises
    ------
    InputError
        If there is neither, or the list is damaged.
    """
    path = directory / JOBS
    try:
        listed = [(job["overrides"], job["directory"]) for job in json.loads(path.read_text(encoding="utf-8"))]
    except (FileNotFoundError, NotADirectoryError):
        found = {path.parent for name in (RECORD, REFUSED) for path in directory.glob(f"*/{name}")}
        listed = [(None, job.name) for job in sorted(found)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); the sweep's command writes it anew") from None
    if not listed:
        raise InputError(f"{directory} holds no sweep: it has neither {JOBS} nor jobs in folders of their own")
    return [_status(directory / name, overrides) for overrides, name in listed]


def _status(directory: Path, overrides: list[str] | None) -> Status:
    state, record, rows, error = state_of(directory), {}, [], ""
    try:
        rows = read_rows(directory)
        record = read_record(directory)
    except InputError as damage:
        if state not in ("missing", "refused"):
            state, error = "damaged", str(damage)
    if state == "failed":
        error = record.get("error") or state
    if state != "running" and (directory / REFUSED).exists():  # of the last try, before it became a run
        error = (directory / REFUSED).read_text(encoding="utf-8").strip() or "refused"
    return Status(
        overrides=record.get("overrides", []) if overrides is None else overrides,
        name=directory.name,
        state=state,
        rounds=f"{len(rows)}/{record['config']['federation']['num_rounds']}" if record else "",
        figures=record.get("result") or (rows[-1] if rows else {}),
        error=error,
    )


def swept(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return of each job's overrides those that not all jobs have."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[word for word in job if word not in shared] for job in jobs]


def new_table(*columns: str) -> Table:
    """Return a table whose first column is the one to wrap where the terminal is narrow."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    return table


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, and in a file as wide as lines can be read."""
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)
