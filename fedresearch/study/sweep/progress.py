"""What a sweep shows while it runs: how many jobs are done, run and wait, the time left, the newest result."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from pathlib import Path
from threading import Event, Thread
from time import time
from types import TracebackType
from typing import Any

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.text import Text

from fedresearch.config import Config
from fedresearch.errors import InputError, printable
from fedresearch.runs.loaded import Run, default_metric
from fedresearch.runs.record import METRICS, RECORD, REFUSED, num_rounds, read_record, read_rows
from fedresearch.study.sweep.compose import Job
from fedresearch.study.sweep.job import is_done
from fedresearch.study.sweep.status import job_names, new_table
from fedresearch.tracking.console import duration

_MAX_LINES = 20  # of running jobs on a terminal


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    words : frozenset of str
        Its overrides; jobs that share more of them are more alike.
    work : float
        The size of the whole job, in a unit that the jobs share.
    share : float
        How much of it is done, 0 to 1.
    busy_s : float
        Seconds that this took, without the start.
    state : str
        ``waiting``, ``running`` or ``over``.
    """

    words: frozenset[str]
    work: float
    share: float = 0.0
    busy_s: float = 0.0
    state: str = "waiting"


def seconds_left(jobs: Sequence[Progress], start_s: float, at_once: int) -> float | None:
    """Return how long jobs will still take; None where no round is done yet.

    A job takes, for each unit of its work, the time of those jobs that are most like it, itself first. Jobs that wait
    start in their order, as soon as another ends.

    Parameters
    ----------
    jobs : sequence of Progress
        In the order in which they start.
    start_s : float
        Seconds that a job takes before its first round.
    at_once : int
        Jobs that run at the same time, at least 1.
    """
    known = [job for job in jobs if job.share and job.busy_s]
    if not known:
        return None

    def rest(job: Progress) -> float:
        alike = [len(job.words & other.words) for other in known]
        nearest = [other for other, words in zip(known, alike, strict=True) if words == max(alike)]
        rate = sum(other.busy_s for other in nearest) / sum(other.work * other.share for other in nearest)
        return rate * job.work * (1 - job.share)

    ends = sorted((rest(job) for job in jobs if job.state == "running"), reverse=True)
    ends += [0.0] * (at_once - len(ends))
    heapify(ends)
    for job in jobs:
        if job.state == "waiting":
            heapreplace(ends, ends[0] + start_s + rest(job))
    return max(ends)


class SweepProgress:
    """Shows a sweep while its ``with`` block runs: a table on a terminal, elsewhere a line after each job.

    It reads the jobs' directories, so that it does not matter where a launcher runs them.

    Parameters
    ----------
    jobs : sequence of Job
        In the order in which they start.
    directory : Path
        The sweep's.
    terminal : rich.console.Console or None
        Where to print; None is standard output.
    """

    def __init__(self, jobs: Sequence[Job], directory: Path, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal()
        self._began = time()
        self._watched = [
            _Watched(job, name, directory.absolute() / job.directory)
            for job, name in zip(jobs, job_names([job.overrides for job in jobs]), strict=True)
        ]
        self._at_once, self._num_over = 1, sum(job.progress.state == "over" for job in self._watched)
        self._begun_before = self._num_over
        self._busy_before_s = sum(job.progress.busy_s for job in self._watched)
        self._newest = ""
        self._live = Live(console=self._terminal, auto_refresh=False, transient=True)
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        if self._terminal.is_interactive:
            self._live.start()
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._live.stop()

    def _watch(self) -> None:
        while not self._ended.wait(1):
            self.show()

    def show(self) -> None:
        """Read the jobs, and show them as they are; without a terminal, only where one more is over."""
        now = time()
        for job in self._watched:
            if job.read(now) and job.result:
                self._newest = f"  {job.result} ({job.name})"
        running = [job for job in self._watched if job.progress.state == "running"]
        num_over = sum(job.progress.state == "over" for job in self._watched)
        self._at_once = max(self._at_once, len(running))
        waiting = len(self._watched) - num_over - len(running)
        line = printable(
            f"{num_over} of {len(self._watched)} jobs done, {len(running)} running, {waiting} waiting"
            f"{self._time_left(now, num_over + len(running))}{self._newest}"
        )
        if self._terminal.is_interactive:
            table = new_table("job", "round", "result")
            for job in running[:_MAX_LINES]:
                table.add_row(*map(printable, (job.name, f"{job.rounds}/{job.planned}", job.result)))
            self._live.update(Group(*[table] * bool(running), Text(line)), refresh=True)
        elif num_over > self._num_over:
            self._terminal.print(line, markup=False, highlight=False, soft_wrap=True)
        self._num_over = num_over

    def _time_left(self, now: float, num_begun: int) -> str:
        jobs = [job.progress for job in self._watched]
        busy_s = sum(job.busy_s for job in jobs) - self._busy_before_s
        if not busy_s:  # the first start imports what later ones find there
            self._began, self._begun_before = now, num_begun
        # What the processes did besides rounds, for each job: they start, and load data.
        besides = (now - self._began) * self._at_once - busy_s
        start_s = max(0.0, besides / max(1, num_begun - self._begun_before))
        left = seconds_left(jobs, start_s, self._at_once)
        return "" if left is None else f"  {duration(left)} left"


class _Watched:
    """A job as its directory shows it: its progress, rounds, and last result."""

    def __init__(self, job: Job, name: str, directory: Path) -> None:
        self.name, self.result, self.rounds = name, "", 0
        self.planned = job.config.federation.num_rounds
        self.progress = Progress(frozenset(job.overrides), _work(job.config))
        self._directory = directory
        self._is_done = is_done(directory, job.config)
        self._first = self._times = self._read_times()
        self._record: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._load(time())

    def read(self, now: float) -> bool:
        """Read the directory again if its files have changed, and return whether they have."""
        times = self._read_times()
        changed = times != self._times
        self._times = times
        if changed or self.progress.state == "running":
            self._load(now, changed)
        return changed

    def _read_times(self) -> dict[str, float]:
        times = {}
        for name in (RECORD, METRICS, REFUSED):
            try:
                times[name] = (self._directory / name).stat().st_mtime
            except OSError:
                continue
        return times

    def _load(self, now: float, changed: bool = True) -> None:
        if changed:
            try:
                self._record, self._rows = read_record(self._directory), read_rows(self._directory)
            except InputError:  # there is none yet, or it is damaged, as the table at the end says
                self._record, self._rows = {}, []
        rows, state = self._rows, self._state()
        self.rounds = num_rounds(rows)
        busy_s = rows[-1].get("time/total_s", 0.0) if self.rounds else 0.0
        each_s = busy_s / max(1, self.rounds)
        if state == "running":  # the round that it is in; its end is not known before it is there
            busy_s += min(each_s, max(0.0, now - self._times.get(METRICS, now)))
        share = min(1.0, busy_s / each_s / self.planned) if each_s else 0.0
        self.progress = Progress(self.progress.words, self.progress.work, share, busy_s, state)
        self.result = self._last_result()

    def _state(self) -> str:
        """Return the state in this sweep: what another process left unfinished, waits."""
        if self._is_done:
            return "over"
        new = {name for name, at in self._times.items() if at != self._first.get(name)}
        if self._record.get("status") == "running":
            return "running" if new & {RECORD, METRICS} else "waiting"
        return "over" if new & {RECORD, REFUSED} else "waiting"

    def _last_result(self) -> str:
        metric = default_metric([(Run(self._directory, "", self._record, ""), self._rows[-1] if self._rows else {})])
        values = [row[metric] for row in self._rows if isinstance(row.get(metric), int | float)]
        return f"{metric} {values[-1]:.4f}" if values else ""


def _work(config: Config) -> float:
    """Return the size of a job: steps or epochs of all clients in all rounds."""
    federation, local = config.federation, config.local
    clients = federation.fraction_train * (federation.num_supernodes or 1)
    return federation.num_rounds * clients * (local.epochs or local.steps or 1)
