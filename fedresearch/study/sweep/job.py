"""One job of a sweep, around its run: whether anything is left to do, and where its failure is kept."""

import sys
import traceback
from pathlib import Path

from fedresearch.config import report_error
from fedresearch.errors import InputError, named
from fedresearch.masking import masked
from fedresearch.runs.directory import Unwritable, write_whole
from fedresearch.runs.loaded import PERSONAL_METRICS, load
from fedresearch.runs.record import FINAL, REFUSED, Busy, read_record, read_run, state_of

# The first of these that a job has; test data choose nothing.
_OBJECTIVES = ("clients/eval_acc", "clients/eval_loss")


def is_settled(directory: Path, digest: str) -> bool:
    """Return whether a job is done or another process is at it, and say so; what was told of it before is forgotten.

    Raises
    ------
    InputError
        If its directory holds the run of another job.
    """
    refuse_other(directory, digest)
    state = load(directory)[0].state  # damaged, too, where a finished run has lost rows
    if state in (*FINAL, "running"):
        _skipped(directory, state)
        return True
    (directory / REFUSED).unlink(missing_ok=True)
    return False


def refuse_other(directory: Path, digest: str) -> None:
    """Refuse a directory that holds the run of another job, as only a ``hydra.sweep.subdir`` of the user's can.

    Raises
    ------
    InputError
        If it does.
    """
    try:
        found = read_record(directory).get("digest")
    except InputError:
        return  # none, or a damaged one
    if found != digest:
        raise InputError(f"{directory} holds the run of another config; try another hydra.sweep.subdir")


def report_failure(directory: Path, error: Exception) -> None:
    """Print a job's error, with its traceback if no user can mend it, and keep it where the run's record does not."""
    if isinstance(error, Busy):
        _skipped(directory, "running")
        return
    if not report_error(error):
        traceback.print_exception(error, file=sys.stderr)
    try:
        recorded = read_record(directory).get("error")
    except InputError:
        recorded = None
    # A run's record has what was raised in it, which may be the cause of what is told.
    if recorded not in [masked(named(cause)) for cause in (error, error.__cause__) if cause]:
        kept = masked(str(error) if isinstance(error, InputError) else named(error))
        try:
            write_whole(directory / REFUSED, lambda path: path.write_text(f"{kept}\n", encoding="utf-8"))
        except Unwritable as unwritable:  # the other jobs, and the sweep's table, are not to be lost for it
            report_error(unwritable)


def objective(directory: Path) -> float | None:
    """Return what a sweeper optimises of a job: the clients' validation accuracy or, without classes, their loss.

    It is that of the last round that was evaluated on the clients; None if there is none, or the job has not finished.

    Raises
    ------
    InputError
        If the job's rows are damaged.
    """
    if state_of(directory) != "finished":
        return None
    record, rows = read_run(directory)
    for column in PERSONAL_METRICS if record.get("own_models") else _OBJECTIVES:
        values = [row[column] for row in rows if row.get(column) is not None]
        if values:
            return float(values[-1])
    return None


def _skipped(directory: Path, state: str) -> None:
    where = " in another process" if state == "running" else ""
    print(f"{directory.name} is {state}{where}: skipped", flush=True)
