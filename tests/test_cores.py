"""How many cores a run may use, and what starts a run on them."""

import io
import os
from importlib.util import find_spec

import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import context
from torch.utils.data import DataLoader, TensorDataset

from fedresearch.hardware.cores import num_cores, share_cores
from fedresearch.hardware.workers import WorkerGrid
from tests.directories import SCAFFOLD, conduct, killed, outcome
from tests.test_workers import Counting


@pytest.fixture
def machine(monkeypatch):
    """Return a function that gives this process cores of a machine's eight, and a cgroup that has files."""

    def machine_(cores, files=()):
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
        files = {f"/sys/fs/cgroup/{name}": text for name, text in dict(files).items()}
        monkeypatch.setattr(os.path, "exists", lambda path: path in files)
        monkeypatch.setattr(context, "open", lambda path: io.StringIO(files[path]), raising=False)

    return machine_


def test_auto_is_the_cores_that_this_process_may_use(machine):
    machine({3, 5, 7, 8})
    assert num_cores() == 4
    for num_supernodes, threads, expected in ((10, 1, 4), (3, 1, 3), (10, 2, 2), (10, 8, 1)):
        with WorkerGrid(Counting(), num_supernodes, threads=threads) as grid:
            assert len(grid._workers) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_quota_of_the_cgroup_counts(machine, files, expected):
    machine({0, 1, 2, 3}, files)
    assert num_cores() == expected


def test_jobs_at_once_share_the_cores(machine, monkeypatch):
    monkeypatch.setenv("FEDRESEARCH_NUM_CORES", "6")
    machine({*range(8)})
    assert share_cores(2) == num_cores() == 3  # of the share of its own
    assert share_cores(5) == num_cores() == 1


def job(directory, *overrides):
    """Run or resume an experiment, and a DataLoader that has a worker; return the outcome, and the sum of its data."""
    conduct(directory, *overrides)
    loaded = DataLoader(TensorDataset(torch.arange(10)), batch_size=2, num_workers=1)
    return outcome(directory), sum(int(batch.sum()) for (batch,) in loaded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_job_of_joblib_runs_on_every_hardware(tmp_path, whole):
    """Joblib starts processes in a way of its own, which is then the default for those that they start.

    Hardware that gives the bits of cpu finishes a run that was killed there.
    """
    resumed = {"workers": "hardware.workers=2"}
    resumed |= {"ray": f"hardware.num_cpus={num_cores()}"} if find_spec("ray") else {}  # one actor
    jobs = [
        (killed(whole, tmp_path / hardware, checkpoint=2), *SCAFFOLD, f"hardware={hardware}", option)
        for hardware, option in resumed.items()
    ]
    jobs.append((tmp_path / "batched", *SCAFFOLD, "hardware=batched", "hardware.compile=false"))
    with get_reusable_executor(max_workers=1) as executor:
        *same, (batched, loaded) = [task.result() for task in [executor.submit(job, *each) for each in jobs]]
    assert same == [(outcome(whole), sum(range(10)))] * len(resumed)
    assert loaded == sum(range(10))
    assert [row["round"] for row in batched[0]] == [0, 1, 2, 3, 4]
