"""The states of a sweep's jobs, read from its directory."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedresearch.errors import InputError, printable
from fedresearch.runs.files import read_bytes, refuse_no_folders
from fedresearch.runs.loaded import default_metric, load, wrong_model_warning
from fedresearch.runs.record import RECORD, REFUSED, num_rounds

_MAX_LIST_BYTES = 64_000_000
# The list of a sweep's jobs, written before they start.
JOBS = "sweep.json"

# The name of a job whose overrides all jobs share.
ONLY_JOB = "the only job"


def show(directory: Path) -> bool:
    """Print a sweep's jobs, the number in each state, and the errors; return whether any failed.

    Raises
    ------
    InputError
        If the directory does not exist, or holds neither a list of jobs nor a job.
    """
    refuse_no_folders([directory], "name a sweep's directory, such as outputs/sweep_DIGEST")
    jobs = list_jobs(directory)
    loaded = [load(job) for _, job in jobs]
    overrides = [
        run.record.get("overrides", []) if words is None else words
        for (words, _), (run, _) in zip(jobs, loaded, strict=True)
    ]
    last_rows = [run.record.get("result") or (rows[-1] if rows else {}) for run, rows in loaded]
    names = job_names(overrides)
    metric = default_metric([(run, last) for (run, _), last in zip(loaded, last_rows, strict=True)])
    table = new_table("job", "directory", "state", "rounds", metric)
    for (run, rows), name, last in zip(loaded, names, last_rows, strict=True):
        rounds = f"{num_rounds(rows)}/{run.planned_rounds or '?'}" if run.record else ""
        value = last.get(metric)
        number = f"{value:.4f}" if isinstance(value, int | float) else ""
        table.add_row(*map(printable, (name, run.directory.name, run.state, rounds, number)))
    print_table(table)
    print(printable(f"{_counts(run.state for run, _ in loaded)} in {directory}"), flush=True)
    for sweep in _sweeps_in(directory):
        states = _counts(load(job)[0].state for _, job in list_jobs(sweep))
        print(printable(f"{sweep} is a separate sweep: {states}"), flush=True)
    personal = [name for (run, _), name in zip(loaded, names, strict=True) if run.own_models]
    if line := wrong_model_warning(metric, personal, f"{len(loaded)} jobs"):
        print(printable(f"warning: {line}"), flush=True)
    for run, _ in loaded:
        if run.error:
            print(printable(f"{run.directory.name}: {run.error}"), flush=True)
    return any(run.failed for run, _ in loaded)


def _counts(states: Iterable[str]) -> str:
    return ", ".join(f"{number} {state}" for state, number in Counter(states).items())


def _sweeps_in(directory: Path) -> list[Path]:
    """Return the folders in a directory that hold the jobs of other sweeps."""
    jobs = {path.parent for name in (RECORD, REFUSED) for path in directory.glob(f"*/*/{name}")}
    return sorted({path.parent for path in directory.glob(f"*/{JOBS}")} | {job.parent for job in jobs})


def list_jobs(directory: Path) -> list[tuple[list[str] | None, Path]]:
    """Return the overrides and the directory of each job in a sweep's list or, without a list, of each job found.

    Overrides are None without a list.

    Raises
    ------
    InputError
        If there is neither a list nor a job, or the list is damaged.
    """
    path = directory / JOBS
    jobs: list[tuple[list[str] | None, Path]]
    try:
        entries = json.loads(read_bytes(path, _MAX_LIST_BYTES))
        jobs = [([*map(str, entry["overrides"])], directory / entry["directory"]) for entry in entries]
        for _, job in jobs:
            os.path.realpath(job)  # raises ValueError for an invalid path
    except (FileNotFoundError, NotADirectoryError):
        found = {path.parent for name in (RECORD, REFUSED) for path in directory.glob(f"*/{name}")}
        jobs = [(None, job) for job in sorted(found)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); type the sweep's command again to rewrite it") from None
    if not jobs and (sweeps := _sweeps_in(directory)):
        raise InputError(f"{directory} holds sweeps and no jobs itself; try one of {', '.join(map(str, sweeps[:9]))}")
    if not jobs:
        raise InputError(f"{directory} holds no sweep: it has neither {JOBS} nor folders of jobs")
    return jobs


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return each job's name: its overrides that not all jobs share."""
    shared = set.intersection(*map(set, jobs)) if jobs else set()
    return [" ".join(word for word in job if word not in shared) or ONLY_JOB for job in jobs]


def name_of(job: Path, sweep: Path) -> str:
    """Return the name of the job in a directory; "" in a sweep without a list of its jobs."""
    try:
        jobs = list_jobs(sweep)
    except InputError:
        return ""
    names = job_names([words or [] for words, _ in jobs])
    here = job.resolve()
    return next((name for name, (words, path) in zip(names, jobs, strict=True) if words and path.resolve() == here), "")


def new_table(*columns: str) -> Table:
    """Return a table whose first column is wrapped if the terminal is narrow."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    return table


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal; to a file, 160 characters wide."""
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)
