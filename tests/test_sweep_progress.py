"""The time left of a sweep, by a clock that is simulated, and the lines that a sweep shows."""

import io
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console as Terminal

from fedresearch.study.sweep.compose import Job
from fedresearch.study.sweep.progress import Progress, SweepProgress, seconds_left
from tests.records import make


@dataclass
class Simulated:
    """A job of known length: its words, work, and seconds of a round."""

    words: str
    work: float
    rounds: int
    round_s: float

    def at(self, since_s, start_s):
        """Return its progress so many seconds after it began; None: it waits."""
        words = frozenset(self.words.split())
        if since_s is None:
            return Progress(words, self.work)
        busy_s = min(max(0.0, since_s - start_s), self.rounds * self.round_s)
        share = busy_s / self.rounds / self.round_s if busy_s >= self.round_s else 0.0  # until a round has ended
        state = "over" if share == 1 else "running"
        return Progress(words, self.work, share, busy_s if share else 0.0, state)


def simulate(jobs, start_s, at_once):
    """Return when each job begins, and when the last ends."""
    ends, begins = [0.0] * at_once, []
    for job in jobs:
        place = ends.index(min(ends))
        begins.append(ends[place])
        ends[place] += start_s + job.rounds * job.round_s
    return begins, max(ends)


EQUAL = [Simulated(f"seed={seed}", 20, 20, 1.0) for seed in range(20)]
ARMS = [
    Simulated(f"seed={seed} strategy={name}", 20, 20, round_s)
    for seed in range(10)
    for name, round_s in (("fedavg", 1.0), ("scaffold", 2.0), ("ditto", 5.0))
]
# The first tenth has none of the long jobs, whose size the config says.
EPOCHS = [
    Simulated(f"local.epochs={epochs} seed={seed}", 20 * epochs, 20, 0.5 * epochs)
    for epochs in (1, 10)
    for seed in range(10)
]


@pytest.mark.parametrize("jobs", [EQUAL, ARMS, EPOCHS], ids=["equal", "arms", "epochs"])
@pytest.mark.parametrize(("at_once", "start_s"), [(1, 0.0), (1, 4.0), (4, 4.0), (7, 0.0)])
def test_the_time_left_is_right_within_a_fifth_after_a_tenth(jobs, at_once, start_s):
    begins, end = simulate(jobs, start_s, at_once)
    for tenths in range(1, 10):
        now = end * tenths / 10
        at = [job.at(now - begin if begin < now else None, start_s) for job, begin in zip(jobs, begins, strict=True)]
        begun = sum(job.state != "waiting" for job in at)
        besides = (now * at_once - sum(job.busy_s for job in at)) / begun
        assert seconds_left(at, max(0.0, besides), at_once) == pytest.approx(end - now, rel=0.2), f"{tenths} tenths"


def test_without_a_round_there_is_no_time_left():
    assert seconds_left([Progress(frozenset(), 1.0)], 0.0, 1) is None


@pytest.fixture
def jobs():
    federation = SimpleNamespace(num_rounds=2, fraction_train=1.0, num_supernodes=2)
    config = SimpleNamespace(federation=federation, local=SimpleNamespace(epochs=1, steps=None))
    return [Job([f"seed={seed}", "strategy=fedavg"], f"{seed}", config, {}) for seed in range(3)]


def run_two(progress, directory):
    """Let one job end and another do a round, with a look at them before, between and after."""
    progress.show()
    row = {"eval/accuracy": 0.5, "time/total_s": 1.0}
    make(directory / "0", rows=[row, row | {"eval/accuracy": 0.75}])
    progress.show()
    make(directory / "1", status="running", rows=[row])
    progress.show()


def test_a_line_follows_each_job(jobs, tmp_path):
    file = io.StringIO()
    run_two(SweepProgress(jobs, tmp_path, Terminal(file=file)), tmp_path)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("1 of 3 jobs done, 0 running, 2 waiting  ")
    assert line.endswith(" s left  eval/accuracy 0.7500 (seed=0)")


def test_a_terminal_has_a_table_of_running_jobs(jobs, tmp_path):
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    progress = SweepProgress(jobs, tmp_path, terminal)
    with progress:
        run_two(progress, tmp_path)
    shown = file.getvalue()
    assert "seed=1  1/2    eval/accuracy 0.5000" in shown
    assert "1 of 3 jobs done, 1 running, 1 waiting" in shown
