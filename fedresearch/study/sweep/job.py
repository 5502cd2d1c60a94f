"""What a sweep does with one job before and after its run: skip it, keep its failure, read its objective."""

import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from fedresearch.config import Config, differences, digest, report_error
from fedresearch.config.schema import MAY_CHANGE_ON_RESUME
from fedresearch.errors import InputError, named
from fedresearch.masking import masked, masked_tree
from fedresearch.runs.comparison import format_changes
from fedresearch.runs.directory import Unwritable, write_whole
from fedresearch.runs.loaded import evaluated_metrics, load
from fedresearch.runs.record import REFUSED, Busy, num_rounds, read_record, read_run, state_of
from fedresearch.runs.record_fields import invalid_field


def is_settled(directory: Path, config: Config) -> bool:
    """Return whether a job is done or runs in another process, and print so; else remove the error of its last try.

    Raises
    ------
    InputError
        If its directory holds another job's run.
    """
    changes = changes_in_record(directory, config)
    state = load(directory)[0].state
    if state == "running" or is_done(directory, config):
        _print_skipped(directory, state, changes)
        return True
    (directory / REFUSED).unlink(missing_ok=True)
    return False


def is_done(directory: Path, config: Config) -> bool:
    """Return whether a job has all its rounds, or diverged; ``resume`` may have given its run more rounds."""
    run, rows = load(directory)  # "damaged" also where a finished run has lost rows
    planned = config.federation.num_rounds
    if run.state == "finished":
        return run.planned_rounds is None or run.planned_rounds >= planned
    return run.state == "diverged" or (run.state not in ("running", "damaged") and num_rounds(rows) > planned)


def changes_in_record(directory: Path, config: Config) -> str:
    """Return what a job's run was resumed with, and a ``checkpoint.best`` that it did not have; "" if nothing differs.

    Returns
    -------
    str
        Such as ``federation.num_rounds=30 (now 20)``.

    Raises
    ------
    InputError
        If the directory holds another job's run, which only a typed ``hydra.sweep.subdir`` can cause.
    """
    try:
        record = read_record(directory)
    except InputError:
        return ""  # the record is missing or damaged
    if invalid_field(record):
        return ""
    found = differences(record["config"], masked_tree(asdict(config)))
    numerical = [key for key, _, _, is_numerical in found if is_numerical]
    if record.get("digest") != digest(config) and not (numerical and {*numerical} <= {*MAY_CHANGE_ON_RESUME}):
        raise InputError(f"{directory} holds the run of another config; try another hydra.sweep.subdir")
    told = [*numerical, "checkpoint.best"] if config.checkpoint.best else numerical
    return format_changes((key, theirs, ours) for key, theirs, ours, _ in found if key in told)


def report_failure(directory: Path, error: Exception) -> None:
    """Print a job's error, with its traceback unless users can fix it, and keep it if the run's record does not."""
    if isinstance(error, Busy):
        _print_skipped(directory, "running")
        return
    if not report_error(error):
        traceback.print_exception(error, file=sys.stderr)
    try:
        recorded = str(read_record(directory).get("error"))
    except InputError:
        recorded = ""
    # A run's record has the error that was raised in it, which may be the cause of this one, and where that was.
    if not recorded.startswith(tuple(masked(named(cause)) for cause in (error, error.__cause__) if cause)):
        kept = masked(str(error) if isinstance(error, InputError) else named(error))
        try:
            write_whole(directory / REFUSED, lambda path: path.write_text(f"{kept}\n", encoding="utf-8"))
        except Unwritable as unwritable:  # the other jobs and the sweep's table matter more
            report_error(unwritable)


def objective(directory: Path, num_rounds: int) -> float | None:
    """Return a job's number that a sweeper optimises: on clients' validation data, its first metric or else the loss.

    It belongs to the last round that was evaluated on the clients. None if no round was, or the job has not finished.
    Test data must not choose jobs.

    Parameters
    ----------
    directory : Path
        The job's directory.
    num_rounds : int
        The sweep's number of rounds; ``resume`` may have added some.

    Raises
    ------
    InputError
        If the job's rows are damaged.
    """
    if state_of(directory) != "finished":
        return None
    record, rows = read_run(directory)
    scope = "personal" if record.get("own_models") else "clients"
    for column in [f"{scope}/{metric}" for metric in evaluated_metrics(record)]:
        values = [row[column] for row in rows if row["round"] <= num_rounds and row.get(column) is not None]
        if values:
            return float(values[-1])
    return None


def _print_skipped(directory: Path, state: str, changes: str = "") -> None:
    where = " in another process" if state == "running" else ""
    print(f"{directory.name} is {state}{where}{f' with {changes}' if changes else ''}: skipped", flush=True)
