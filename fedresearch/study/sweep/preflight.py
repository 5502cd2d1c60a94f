"""An estimate of a sweep: from its finished runs, or from a short run of one cell of each scale."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich import filesize

from fedresearch.config import Config, digest, runs_elsewhere
from fedresearch.config.rules import RULES
from fedresearch.config.schema import counts, is_seed
from fedresearch.dotted_keys import as_json, leaves
from fedresearch.errors import InputError
from fedresearch.experiment.request import RunRequest
from fedresearch.runs.record import read_rows, read_run, state_of
from fedresearch.study.sweep.callback import exit_on_error
from fedresearch.study.sweep.compose import Job, compose_jobs, knows_its_jobs, sweep_directory
from fedresearch.study.sweep.job import is_done
from fedresearch.study.sweep.status import job_names, new_table, print_table
from fedresearch.tracking.console import duration

# The path of this process: a module of the current folder precedes the standard library's only if it does here.
_TIMED = "import sys; sys.path[:] = sys.argv[1:]; from fedresearch.study.sweep.timed import main; main()"


class Preflight(Callback):
    """Takes the place of :class:`fedresearch.study.sweep.callback.Sweep`: estimates the sweep, and starts no job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the estimate and exit, with 1 if the sweep or a short run of a job fails."""
        sys.exit(1 if exit_on_error(_estimate_sweep, config) else 0)


def _estimate_sweep(sweep: DictConfig) -> bool:
    directory = sweep_directory(sweep)
    if not knows_its_jobs(sweep):
        raise InputError("only the jobs of hydra/sweeper=basic are known before they start")
    return estimate(compose_jobs(sweep), directory)


@dataclass(frozen=True)
class Estimate:
    """What one job takes, and the source of that; None where unknown.

    Attributes
    ----------
    seconds : float or None
        From its start to its end.
    memory_bytes : int or None
        Peak memory of the largest of its processes.
    comm_bytes : int or None
        All models, down and up.
    source : str
        What was measured.
    """

    seconds: float | None
    memory_bytes: int | None
    comm_bytes: int | None
    source: str


def estimate(jobs: Sequence[Job], directory: Path) -> bool:
    """Print a sweep's jobs, which are done, and an estimate of the others; return whether a short run failed.

    Jobs of one cell share an estimate. Cells of one scale share one where none of their jobs is done.
    """
    states = [state_of(directory / job.directory) for job in jobs]
    done = [is_done(directory / job.directory, job.config) for job in jobs]
    cells = [digest(job.config, seeds=False) for job in jobs]
    scales = [_scale(job.config) for job in jobs]
    past = _estimates_from_past(jobs, done, cells, directory)
    estimates = {scale: past[cell] for cell, scale in zip(cells, scales, strict=True) if cell in past}
    failed = False
    for job, is_over, scale in zip(jobs, done, scales, strict=True):
        if not is_over and scale not in estimates:
            try:
                estimates[scale] = _measure(job)
            except InputError as error:
                failed = True
                estimates[scale] = Estimate(None, None, None, str(error))
    table = new_table("job", "directory", "state", "time", "memory", "communicated", "estimated from")
    remaining: list[Estimate] = []
    names = job_names([job.overrides for job in jobs])
    for job, name, state, is_over, cell, scale in zip(jobs, names, states, done, cells, scales, strict=True):
        if is_over:
            table.add_row(name, job.directory, state)
        else:
            remaining.append(past[cell] if cell in past else estimates[scale])
            table.add_row(name, job.directory, state, *_figures(remaining[-1]), remaining[-1].source)
    print_table(table)
    if not remaining:
        print(f"all {len(jobs)} jobs in {directory} are done")
        return False
    time_s, memory, communicated = _figures(_total(remaining))
    print(
        f"{len(remaining)} of {len(jobs)} jobs to do in {directory}: {time_s} one after another, "
        f"{memory} of memory for the largest process, {communicated} communicated"
    )
    return failed


def _scale(config: Config) -> str:
    """Return a text that is equal for configs whose runs take equally long: without seeds, rates and weights."""
    settings = {key: value for key, value in leaves(asdict(config)) if counts(key) and not is_seed(key)}
    sizes = {key: value for key, value in settings.items() if not _is_rate(key, value)}
    return as_json([sizes, config.hardware])


def _is_rate(key: str, value: Any) -> bool:
    """Return whether a key is an option's number that may be a fraction, and so is not a count."""
    of_an_option = key.startswith(("optimizer.", "partitioner.", "strategy."))
    rules = [rule for rule in RULES if rule.key == key]
    may_be = all(rule.holds(0.5) for rule in rules) if rules else type(value) is float
    return of_an_option and type(value) in (int, float) and may_be


def _estimates_from_past(
    jobs: Sequence[Job], done: Sequence[bool], cells: Sequence[str], directory: Path
) -> dict[str, Estimate]:
    """Return an estimate for each cell of which a job is done on the same hardware."""
    found = {}
    for job, is_over, cell in zip(jobs, done, cells, strict=True):
        if is_over:
            record, rows = read_run(directory / job.directory)
            planned = job.config.federation.num_rounds  # resume may have added some
            rows = [row for row in rows if row["round"] <= planned]
            if rows and record["config"]["hardware"] == job.config.hardware:
                found[cell] = Estimate(
                    seconds=rows[-1]["time/total_s"],
                    memory_bytes=record.get("peak_memory_bytes"),
                    comm_bytes=rows[-1]["comm/bytes_down_total"] + rows[-1]["comm/bytes_up_total"],
                    source=f"past run {job.directory}",
                )
    return found


def _measure(job: Job) -> Estimate:
    """Run two of a job's rounds in a separate process, and return an estimate for all its rounds.

    Raises
    ------
    InputError
        With the run's last line on standard error, if it failed.
    """
    if runs_elsewhere(job.config):
        return Estimate(None, None, None, "unknown: runs on a SuperLink")
    num_rounds = job.config.federation.num_rounds
    print(f"running two rounds of {' '.join(job.overrides)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        request = RunRequest(_short(job.config), job.choices, run, job.overrides, [], [])
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TIMED, *sys.path],
            input=request.dumps(),
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise InputError((done.stderr.splitlines() or ["no message"])[-1])
        last = read_rows(run)[-1]
    return Estimate(
        # The first round also compiles and reads data, which does not grow with the rounds.
        seconds=seconds + (num_rounds - last["round"]) * last["time/round_s"],
        memory_bytes=int(done.stdout.splitlines()[-1]),
        comm_bytes=num_rounds * _comm_bytes(last),
        source=f"a run of {last['round']} rounds",
    )


def _short(config: Config) -> Config:
    federation = replace(config.federation, num_rounds=min(2, config.federation.num_rounds))
    return replace(
        config,
        federation=federation,
        checkpoint=replace(config.checkpoint, every=0),
        tracker={"_target_": "fedresearch.tracking.tracker.NoTracker"},
    )


def _comm_bytes(row: Mapping[str, Any]) -> int:
    return int(row["comm/bytes_down"] + row["comm/bytes_up"])


def _total(estimates: Sequence[Estimate]) -> Estimate:
    """Return the sum of what is known, and the largest memory, since jobs run one after another."""
    return Estimate(
        seconds=sum(each.seconds or 0 for each in estimates),
        memory_bytes=max((each.memory_bytes or 0 for each in estimates), default=0),
        comm_bytes=sum(each.comm_bytes or 0 for each in estimates),
        source="",
    )


def _figures(estimate: Estimate) -> tuple[str, str, str]:
    counts = estimate.memory_bytes, estimate.comm_bytes
    memory, communicated = ("?" if count is None else filesize.decimal(count) for count in counts)
    return "?" if estimate.seconds is None else duration(estimate.seconds), memory, communicated
