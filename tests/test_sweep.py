"""Sweeps that continue: each job runs once, whatever happens to the processes, and every failure is reported."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedresearch.errors import InputError
from fedresearch.study.sweep import preflight
from fedresearch.study.sweep.compose import Job
from fedresearch.study.sweep.job import report_failure
from tests import warm
from tests.records import make

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = ["dataset=digits", "model=logistic", "federation.num_rounds=2", "federation.num_supernodes=4"]
SMALL += ["local.epochs=1", "tracker=none"]
# Replaces the run, and prints its directory.
NO_RUN = """
import sys, types
stub = types.ModuleType("fedresearch.experiment.run")
stub.run_experiment = lambda request: print("would run", request.directory)
sys.modules["fedresearch.experiment.run"] = stub
from fedresearch import main
sys.argv = ["main", *sys.argv[1:]]
main.main()
"""
# A strategy that fails in one job while the file `broken` exists, and waits in another while `hold` exists.
MOODY = """
import time
from pathlib import Path
from flwr.serverapp.strategy import FedAvg

class Moody(FedAvg):
    def __init__(self, seed, **options):
        super().__init__(**options)
        self.seed = seed

    def aggregate_train(self, server_round, replies):
        if server_round == 2 and self.seed == 2 and Path("broken").exists():
            raise RuntimeError("of several lines\\nthe reason is the last")
        while server_round == 2 and self.seed == 3 and Path("hold").exists():
            Path("holding").touch()
            time.sleep(0.1)
        return super().aggregate_train(server_round, replies)
"""
MOODY_OPTION = """
defaults: [fedavg, _self_]
server: {_target_: moody.Moody, seed: "${seed}"}
"""


def start(cwd, *arguments, runs=True, path=(), preload=warm.HEAVY):
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_FULL_ERROR")}
    folders = os.pathsep.join(map(str, [*path, ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]))
    words = [*(["-m", "fedresearch.main"] if runs else ["-c", NO_RUN]), *arguments]
    preload = preload if runs else warm.LIGHT
    return warm.Command(*words, cwd=cwd, env={**clean, "PYTHONPATH": folders}, preload=preload)


def finish(process):
    with process:
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process, process.returncode, out, err)


def command(*arguments, **options):
    return finish(start(*arguments, **options))


def status(cwd, directory):
    return command(cwd, "sweep", "status", directory, preload=warm.LIGHT)


def records(directory):
    """Return a mapping of directories to records, for jobs that became runs."""
    return {path.parent: json.loads(path.read_text()) for path in directory.glob("*/run.json")}


def states(directory):
    """Return the number of jobs in each state."""
    found = [record["status"] for record in records(directory).values()]
    return {state: found.count(state) for state in found}


def times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.glob("*/*") if path.name != ".lock"}


def no_torch(folder):
    """Return a folder that makes the import of torch fail if it comes first in the path."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
    return folder


def test_the_same_command_runs_exactly_the_missing_jobs(tmp_path):
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "moody.yaml").write_text(MOODY_OPTION)
    (tmp_path / "moody.py").write_text(MOODY)
    for name in ("broken", "hold"):
        (tmp_path / name).touch()
    sweep = ["-m", "--config-dir", "conf", *SMALL, "strategy=moody", "seed=range(5)"]

    first = start(tmp_path, *sweep, path=[tmp_path])
    while not (tmp_path / "holding").exists():
        assert first.poll() is None, first.printed()
        time.sleep(0.1)
    (directory,) = (tmp_path / "outputs").iterdir()
    listing = status(tmp_path, directory)
    assert "2 finished, 1 failed, 1 running, 1 missing in" in listing.stdout, listing
    first.send_signal(signal.SIGKILL)
    finish(first)
    listing = status(tmp_path, directory)
    assert listing.returncode == 1
    assert "2 finished, 1 failed, 1 killed, 1 missing in" in listing.stdout
    finished = {job for job, record in records(directory).items() if record["status"] == "finished"}
    before = {path: at for path, at in times(directory).items() if path.parent in finished}

    (tmp_path / "hold").unlink()
    second = command(tmp_path, *sweep, path=[tmp_path])
    assert second.returncode == 1  # the broken one failed again
    assert second.stdout.count("finished after 2 of 2 rounds") == 2
    assert second.stdout.count("is finished: skipped") == 2
    assert "4 finished, 1 failed in outputs/sweep_" in second.stdout
    (failed,) = (job for job, record in records(directory).items() if record["status"] == "failed")
    place = f"the reason is the last in {tmp_path / 'moody.py'}, line 13"
    assert second.stdout.splitlines()[-1] == f"{failed.name}: {place}"
    assert f"error: RuntimeError: of several lines {place}; FEDRESEARCH_FULL_ERROR=1" in second.stderr
    assert "Traceback" not in second.stderr
    assert not (failed / "refused.txt").exists()
    assert before.items() <= times(directory).items()
    assert all(
        len((job / "metrics.jsonl").read_text().splitlines()) == 3 for job in records(directory) if job != failed
    )

    (tmp_path / "broken").unlink()
    third = command(tmp_path, *sweep, path=[tmp_path])
    assert third.returncode == 0, third.stderr
    assert third.stdout.count("finished after 2 of 2 rounds") == 1
    before = times(directory)
    fourth = command(tmp_path, *sweep, path=[no_torch(tmp_path / "first"), tmp_path], preload=warm.LIGHT)
    assert fourth.returncode == 0, fourth.stderr
    assert "5 finished in outputs/sweep_" in fourth.stdout
    assert fourth.stdout.endswith("there is nothing left to do\n")
    assert times(directory) == before
    assert status(tmp_path, directory).returncode == 0


def test_two_sweeps_at_once_share_the_jobs(tmp_path):
    """With compiled code, after which no fork of the process can train; jobs must not fail from it."""
    sweep = ["-m", *SMALL, "hardware=batched", "seed=range(3)"]
    both = [finish(process) for process in [start(tmp_path, *sweep), start(tmp_path, *sweep)]]
    assert [done.returncode for done in both] == [0, 0], both
    (directory,) = (tmp_path / "outputs").iterdir()
    assert states(directory) == {"finished": 3}
    printed = both[0].stdout + both[1].stdout
    assert printed.count("finished after 2 of 2 rounds") == 3
    for job in records(directory):
        assert len((job / "metrics.jsonl").read_text().splitlines()) == 3
        assert printed.splitlines().count(str(job)) == 1


def test_jobs_run_side_by_side_under_joblib(tmp_path):
    sweep = ["-m", *SMALL, "seed=0,1", "partitioner.min_partition_size=1,1000"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = command(tmp_path, *sweep, *joblib)
    assert done.returncode == 1
    assert "2 jobs run at once, on " in done.stdout
    assert "2 finished, 2 refused in outputs/sweep_" in done.stdout
    repeated = command(tmp_path, *sweep)  # the launcher does not change numbers
    assert repeated.stdout.count("is finished: skipped") == 2
    assert len(list((tmp_path / "outputs").iterdir())) == 1


@pytest.mark.parametrize("n_jobs", ["0", "null", "two"])
def test_an_invalid_number_of_jobs_at_once_is_refused(tmp_path, n_jobs):
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={n_jobs}"]
    done = command(tmp_path, "-m", *SMALL, "seed=0,1", *launcher, path=[no_torch(tmp_path / "none")])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "n_jobs" in done.stderr


def test_the_error_of_a_job_that_cannot_start_is_printed_and_kept(tmp_path):
    sweep = ["-m", *SMALL, "partitioner.min_partition_size=1000,1"]
    done = command(tmp_path, *sweep, "hydra.sweep.dir=s")
    assert done.returncode == 1
    assert states(tmp_path / "s") == {"finished": 1}
    (refused,) = (tmp_path / "s").glob("*/refused.txt")
    (printed,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert printed == "error: " + refused.read_text().strip()
    assert done.stdout.splitlines()[-2:] == ["1 refused, 1 finished in s", f"{refused.parent.name}: {printed[7:]}"]
    listing = status(tmp_path, "s")
    assert listing.returncode == 1
    assert listing.stdout in done.stdout
    # Without the list of jobs, the jobs on disk are listing.
    (tmp_path / "s" / "sweep.json").unlink()
    assert {"1 refused", "1 finished"} == set(
        status(tmp_path, "s").stdout.splitlines()[-2].split(" in ")[0].split(", ")
    )


def test_preflight_lists_finished_jobs_and_estimates_the_others(tmp_path):
    sweep = [*SMALL, "seed=0,1", "optimizer.lr=0.1,0.01", "local.batch_size=10,1000"]
    assert command(tmp_path, "-m", *SMALL, "seed=0", "optimizer.lr=0.1", "hydra.sweep.dir=s").returncode == 0
    before = times(tmp_path / "s")
    done = command(tmp_path, "sweep", "preflight", *sweep, "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    (past,) = records(tmp_path / "s")
    rows = [line for line in done.stdout.splitlines() if line.startswith("seed=")]
    (finished,) = (row for row in rows if row.startswith("seed=0 optimizer.lr=0.1 local.batch_size=10 "))
    assert finished.split()[3:] == [past.name, "finished"]
    assert sum(row.rstrip().endswith(f"past run {past.name}") for row in rows) == 3
    assert sum(row.rstrip().endswith("a run of 2 rounds") for row in rows) == 4  # they share one measurement
    assert done.stderr.count("running two rounds of") == 1
    # Two of the four clients train in each of two rounds: 64 * 10 + 10 parameters of four bytes, down and up.
    last = done.stdout.splitlines()[-1]
    assert last.startswith("7 of 8 jobs to do in s: ")
    assert float(last.split(" kB communicated")[0].split()[-1]) > 7 * 2 * 2 * 2 * 650 * 4 / 1000
    assert times(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["optimizer.lr=0.5", "seed=3", "partitioner.alpha=7"], True),
        (["local.epochs=2"], False),
        (["federation.fraction_train=1"], False),
        (["model=logistic"], False),
        (["hardware=workers"], False),
        (["strategy=scaffold"], False),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_scale_has_all_that_time_depends_on(compose, words, same):
    assert (preflight._scale(compose()[0]) == preflight._scale(compose(*words)[0])) is same


@pytest.mark.parametrize("key", ["head_epochs", "head"])
def test_a_strategys_local_epochs_belong_to_the_scale(compose, key):
    values = {"head_epochs": ("1", "2"), "head": ("null", "[fc1]")}[key]
    one, other = (compose("strategy=fedrep", f"strategy.client.{key}={value}")[0] for value in values)
    assert preflight._scale(one) != preflight._scale(other)


def test_a_short_run_has_this_processs_import_path(compose, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('this is not the standard library')")
    monkeypatch.chdir(tmp_path)
    config, choices = compose(*SMALL)
    assert preflight._measure(Job(SMALL, "job", config, choices)).source == "a run of 2 rounds"


def test_a_mistake_in_any_job_is_reported_before_the_first_starts(tmp_path):
    for runs, verb in ((False, ["-m"]), (True, ["sweep", "preflight"])):
        done = command(tmp_path, *verb, *SMALL, "seed=0,1", "optimizer.lr=0.1,-3", runs=runs, preload=warm.LIGHT)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            "error: job seed=0 optimizer.lr=-3 and 1 more: "
            "optimizer.lr must be > 0 and below 1e38, got -3; try optimizer.lr=0.1\n"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["tracker.mode=offline"], True),
        (["name=other", "hardware=workers"], True),
        (["hardware=batched"], False),
        (["hardware=cpu,batched"], False),
        (["seed=0,1"], False),
    ],
)
def test_a_sweeps_directory_depends_on_what_changes_its_numbers(tmp_path, words, same):
    sweeps = [start(tmp_path, "-m", "model=logistic", *more, runs=False) for more in ([], words)]  # within one second
    for done in map(finish, sweeps):
        assert done.returncode == 0, done.stderr
        assert "would run" in done.stdout
    assert len(list((tmp_path / "outputs").iterdir())) == (1 if same else 2)


def test_the_order_of_overrides_does_not_change_a_sweeps_directory(tmp_path):
    words = ["model=logistic", "optimizer.lr=0.1"]
    for done in map(finish, [start(tmp_path, "-m", *order, runs=False) for order in (words, words[::-1])]):
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_a_sweep_is_continued_by_its_own_command(tmp_path):
    (tmp_path / "run").mkdir()
    done = command(tmp_path, "-m", "resume=run", "seed=0,1", preload=warm.LIGHT)
    assert done.returncode == 1
    assert done.stderr == "error: resume continues one run; to continue a sweep, type its own command again\n"


def test_jobs_with_the_same_numbers_run_once(tmp_path):
    done = command(tmp_path, "-m", "hardware=cpu,workers", "seed=0,1", runs=False)
    assert "4 jobs, but only 2 with different numbers" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 missing in outputs/sweep_")


def test_a_sweep_of_strategies_applies_each_value_where_its_key_exists(tmp_path):
    words = ["-m", "model=logistic", "strategy=fedavg,fedprox,scaffold", "strategy.server.proximal_mu=0.01,0.1"]
    rate = "strategy.server.server_learning_rate=0.5"  # only SCAFFOLD has it, and it is not swept
    first, second = (command(tmp_path, *words, rate, runs=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    lines = first.stdout.splitlines()
    assert lines[:2] == [
        "strategy.server.proximal_mu applies to 2 of 4 jobs: the others' options do not have it",
        "strategy.server.server_learning_rate applies to 1 of 4 jobs: the others' options do not have it",
    ]
    assert first.stdout.count("would run") == 4
    assert lines[-1].startswith("4 missing in outputs/sweep_")
    single = command(tmp_path, "strategy=fedavg", "strategy.server.proximal_mu=0.1", runs=False)
    assert single.returncode == 1
    assert single.stderr.startswith("error: unknown key strategy.server.proximal_mu; try strategy=")
    assert len(single.stderr.splitlines()) == 1


def test_an_experiment_may_be_a_sweep(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    grid = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "conf" / "experiment" / "grid.yaml").write_text(grid)
    done = command(tmp_path, "--config-dir", "conf", "experiment=grid", runs=False)
    assert done.stdout.count("would run") == 2, done.stderr
    assert "seed=1" in done.stdout.splitlines()[-2]


def test_a_directory_of_another_job_is_refused(tmp_path):
    make(tmp_path / "s" / "0", record={"digest": "0123456789ab"})
    done = command(tmp_path, "-m", "seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir=${hydra.job.num}", runs=False)
    assert done.returncode == 1
    assert "s/0 holds the run of another config; try another hydra.sweep.subdir" in done.stderr
    assert "would run" not in done.stdout


def test_a_failure_that_cannot_be_kept_is_printed(tmp_path, capsys):
    report_failure(tmp_path / "gone", InputError("no such model"))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: no such model"
    assert "refused.txt cannot be written: No such file or directory" in second
