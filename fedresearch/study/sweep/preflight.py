"""What a sweep would take: from its finished runs, or from a short run of one of its cells of each scale."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import filesize

from fedresearch.config import Config, digest, runs_elsewhere
from fedresearch.config.rules import RULES
from fedresearch.config.schema import counts, is_seed
from fedresearch.dotted_keys import as_json, leaves
from fedresearch.errors import InputError
from fedresearch.experiment.request import RunRequest
from fedresearch.runs.record import FINAL, read_rows, read_run, state_of
from fedresearch.study.sweep.compose import Job
from fedresearch.study.sweep.status import job_names, new_table, print_table
from fedresearch.tracking.console import duration


@dataclass(frozen=True)
class Estimate:
    """What one job takes, and how that is known; None where it is not.

    Attributes
    ----------
    seconds : float or None
        From its start to its end.
    memory_bytes : int or None
        Of the largest of its processes, at its peak.
    comm_bytes : int or None
        All models up and down.
    source : str
        What was measured.
    """

    seconds: float | None
    memory_bytes: int | None
    comm_bytes: int | None
    source: str


def estimate(jobs: Sequence[Job], directory: Path) -> bool:
    """Print a sweep's jobs, which are done, and what the others will take; return whether any could not be tried.

    Jobs of one cell share an estimate, and cells of one scale do where none of their jobs is done.
    """
    states = [state_of(directory / job.directory) for job in jobs]
    cells = [digest(job.config, seeds=False) for job in jobs]
    scales = [_scale(job.config) for job in jobs]
    past = _of_past_runs(jobs, states, cells, directory)
    estimates = {scale: past[cell] for cell, scale in zip(cells, scales, strict=True) if cell in past}
    failed = False
    for job, state, scale in zip(jobs, states, scales, strict=True):
        if state not in FINAL and scale not in estimates:
            try:
                estimates[scale] = _of_short_run(job)
            except InputError as error:
                failed = True
                estimates[scale] = Estimate(None, None, None, str(error))
    table = new_table("job", "directory", "state", "time", "memory", "communicated", "estimated from")
    left: list[Estimate] = []
    names = job_names([job.overrides for job in jobs])
    for job, name, state, cell, scale in zip(jobs, names, states, cells, scales, strict=True):
        if state in FINAL:
            table.add_row(name, job.directory, state)
        else:
            left.append(past[cell] if cell in past else estimates[scale])
            table.add_row(name, job.directory, state, *_figures(left[-1]), left[-1].source)
    print_table(table)
    if not left:
        print(f"all {len(jobs)} jobs in {directory} are done")
        return False
    time_s, memory, communicated = _figures(_total(left))
    print(f"{len(left)} of {len(jobs)} jobs to do in {directory}: {time_s} one after another, ", end="")
    print(f"{memory} of memory for the largest process, {communicated} communicated")
    return failed


def _scale(config: Config) -> str:
    """Return what is equal for configs whose runs take as long: all that counts but seeds, rates and weights."""
    plain = {key: value for key, value in leaves(asdict(config)) if counts(key) and not is_seed(key)}
    sizes = {key: value for key, value in plain.items() if not _is_rate(key, value)}
    return as_json([sizes, config.hardware])


def _is_rate(key: str, value: Any) -> bool:
    """Return whether a key is a number of an option that may be a fraction, and so counts nothing."""
    of_an_option = key.startswith(("optimizer.", "partitioner.", "strategy."))
    rules = [rule for rule in RULES if rule.key == key]
    may_be = all(rule.holds(0.5) for rule in rules) if rules else type(value) is float
    return of_an_option and type(value) in (int, float) and may_be


def _of_past_runs(
    jobs: Sequence[Job], states: Sequence[str], cells: Sequence[str], directory: Path
) -> dict[str, Estimate]:
    """Return the estimates of the cells that have a finished run on the same hardware, by cell."""
    found = {}
    for job, state, cell in zip(jobs, states, cells, strict=True):
        if state in FINAL:
            record, rows = read_run(directory / job.directory)
            if rows and record["config"]["hardware"] == job.config.hardware:
                found[cell] = Estimate(
                    seconds=rows[-1]["time/total_s"],
                    memory_bytes=record.get("peak_memory_bytes"),
                    comm_bytes=sum(map(_comm_bytes, rows)),
                    source=f"past run {job.directory}",
                )
    return found


def _of_short_run(job: Job) -> Estimate:
    """Run two of a job's rounds in a process of its own, and return what all will take.

    Raises
    ------
    InputError
        With the last line of what the run said, if it failed.
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
            [sys.executable, "-m", "fedresearch.study.sweep.timed"],
            input=request.dumps(),
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise InputError((done.stderr.splitlines() or ["no message"])[-1])
        last = read_rows(run)[-1]
    return Estimate(
        # The first round's share, which compiles or reads what is not in memory yet, does not grow with the rounds.
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


def _total(left: Sequence[Estimate]) -> Estimate:
    """Return the sum of what is known; of the memory the largest, since a process ends before the next begins."""
    return Estimate(
        seconds=sum(one.seconds or 0 for one in left),
        memory_bytes=max((one.memory_bytes or 0 for one in left), default=0),
        comm_bytes=sum(one.comm_bytes or 0 for one in left),
        source="",
    )


def _figures(one: Estimate) -> tuple[str, str, str]:
    memory, communicated = ("?" if n is None else filesize.decimal(n) for n in (one.memory_bytes, one.comm_bytes))
    return "?" if one.seconds is None else duration(one.seconds), memory, communicated
