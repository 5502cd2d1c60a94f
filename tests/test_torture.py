"""Runs that are killed at random moments, and resumed until they are finished.

The short test survives four kills, that of ``./scripts/test --long`` fifty; ``FEDRESEARCH_TORTURE_SEED=1``
draws others.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import LONG

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").exists(), reason="processes are read off /proc")]

KILLS = 50 if LONG else 4
SEED = int(os.environ.get("FEDRESEARCH_TORTURE_SEED", "0"))

OPTIONS = [
    "tracker=none",
    "model=mlp",
    "model.widths=[40]",
    "federation.num_supernodes=6",
    "federation.num_rounds=20",
    "local.epochs=null",
    "local.steps=20",
    "checkpoint.every=1",
    "checkpoint.best=eval/loss",
]
STRATEGIES = {
    "scaffold": ["strategy=scaffold"],
    "fedadam": ["strategy=fedadam", "strategy.server.eta=0.01"],
    "fedavg": ["strategy=fedavg", "optimizer.momentum=0.9", "local.keep_optimizer_state=true"],
}
HARDWARE = {"cpu": ["hardware=cpu"], "workers": ["hardware=workers", "hardware.workers=2"]}


class Attempt:
    """One process at work on a run."""

    def __init__(self, directory, words):
        resumes = (directory / "run.json").exists()
        words = [f"{'resume' if resumes else 'hydra.run.dir'}={directory}", *words]
        self._started = time.monotonic()
        self._command = warm.Command("-m", "fedresearch.main", *words, cwd=directory.parent, env=dict(os.environ))
        self.pid, self._metrics = self._command.pid, directory / "metrics.jsonl"

    def is_running(self):
        return self._command.poll() is None

    def wait(self, moment):
        while self.is_running() and not moment():
            time.sleep(0.001)

    def seconds(self):
        return time.monotonic() - self._started

    def num_rows(self):
        """Return the number of whole rows; the first is of round 0."""
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

    def workers(self):
        """Return the workers' processes: those that multiprocessing's fork server has started."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
        return sorted(pid for pid, parent in parents.items() if parents.get(parent) == self.pid)

    def code(self):
        return self._command.wait()

    def printed(self):
        return self._command.printed()[1]


def outcome(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_bytes().splitlines()]
    numbers = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    return numbers, *((directory / name).read_bytes() for name in ("model.safetensors", "best.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a function from a strategy to what it comes to, and how long that takes."""
    known = {}

    def undisturbed_(strategy):
        if strategy not in known:
            directory = tmp_path_factory.mktemp("undisturbed") / strategy
            attempt = Attempt(directory, [*OPTIONS, *STRATEGIES[strategy], *HARDWARE["cpu"]])
            assert attempt.code() == 0, attempt.printed()
            known[strategy] = (outcome(directory), attempt.seconds())
        return known[strategy]

    return undisturbed_


def kill(draw, attempt, target):
    """Kill one of them; return whether the run has ended by that."""
    workers = attempt.workers() if target == "worker" else []
    try:
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
            return False
        (os.killpg if target == "group" else os.kill)(attempt.pid, signal.SIGKILL)
    except ProcessLookupError:
        return not attempt.is_running()
    return True


@pytest.mark.timeout(3600)
def test_random_kills_change_no_bit(tmp_path, undisturbed):
    draw, kills, runs, by = random.Random(SEED), 0, 0, Counter()
    while kills < KILLS:
        strategy = [*STRATEGIES][(runs + SEED) % len(STRATEGIES)]
        expected, takes = undisturbed(strategy)
        directory, of_this_run, hardware = tmp_path / str(runs), 0, draw.choice(["cpu", "cpu", "workers"])
        words = [*OPTIONS, *STRATEGIES[strategy], *HARDWARE[hardware]]
        while True:
            attempt = Attempt(directory, words)
            while of_this_run < 6 and kills < KILLS and attempt.is_running():
                target = draw.choice(["main", "group", "worker"] if hardware == "workers" else ["main", "group"])
                if draw.random() < 0.3:  # while it starts, or somewhere
                    seconds = attempt.seconds() + draw.uniform(0, takes)
                    attempt.wait(lambda attempt=attempt, until=seconds: attempt.seconds() > until)
                else:  # about when a round's row is written, and its checkpoint
                    rows = attempt.num_rows() + draw.randint(1, 6)
                    attempt.wait(lambda attempt=attempt, until=rows: attempt.num_rows() >= until)
                    time.sleep(draw.choice([0, 0.001, 0.003, 0.01, 0.03]))
                if attempt.is_running():
                    ended = kill(draw, attempt, target)
                    kills, of_this_run = kills + 1, of_this_run + 1
                    by[f"{strategy} {hardware} {target}"] += 1
                    if ended:
                        break
            code = attempt.code()
            assert code in (0, -signal.SIGKILL), attempt.printed()
            if code == 0:
                break
        assert outcome(directory) == expected, (SEED, runs, strategy, hardware)
        assert json.loads((directory / "run.json").read_text())["status"] == "finished"
        left = [path.name for path in directory.rglob("*.tmp")]
        assert not left
        runs += 1
        print(f"survived {kills} kills in {runs} runs: {dict(by)}", flush=True)


@pytest.mark.parametrize(("number", "hardware"), [(signal.SIGINT, "workers"), (signal.SIGTERM, "cpu")])
def test_a_signal_ends_the_run_after_its_round(tmp_path, undisturbed, number, hardware):
    expected, _ = undisturbed("fedavg")
    directory = tmp_path / "run"
    words = [*OPTIONS, *STRATEGIES["fedavg"]]
    attempt = Attempt(directory, [*words, *HARDWARE[hardware]])
    attempt.wait(lambda: attempt.num_rows() >= 2)
    # As a terminal does with Ctrl-C: all processes of the group at once.
    (os.killpg if number == signal.SIGINT else os.kill)(attempt.pid, number)
    assert attempt.code() == 128 + number
    printed = attempt.printed()
    assert "stopping after this round; once more to stop at once" in printed
    assert printed.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in printed
    assert json.loads((directory / "run.json").read_text())["status"] == "interrupted"
    assert (directory / "checkpoints" / f"round_{attempt.num_rows() - 1:06d}.safetensors").exists()
    attempt = Attempt(directory, [*words, *HARDWARE["cpu"]])
    assert attempt.code() == 0, attempt.printed()
    assert outcome(directory) == expected
