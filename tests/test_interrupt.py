"""An interrupted or killed run leaves its directory, and nothing else on the machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedresearch.hardware.cores import num_cores
from fedresearch.runs.record import read_rows
from tests import warm
from tests.processes import descendants, living

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").exists(), reason="processes are read off /proc")]


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a long run and, after two rounds, returns it and its processes."""
    processes = []

    def start_(hardware):
        one = {"workers": ["hardware.workers=1"], "ray": [f"hardware.num_cpus={num_cores()}"]}.get(hardware, [])
        words = [f"hardware={hardware}", *one, "tracker=none", "federation.num_rounds=5000"]
        words.append(f"hydra.run.dir={tmp_path}")
        process = warm.Command("-m", "fedresearch.main", *words, cwd=tmp_path, env=dict(os.environ))
        processes.append(process)
        metrics = tmp_path / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        return process, descendants(process.pid)

    yield start_
    for process in processes:
        with process:
            process.kill()


def mapped(pid):
    """Return the named shared memory of a process, which stays until it is removed."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()  # it has ended
    return {Path(path) for line in lines if (path := line.split()[-1]).startswith("/dev/shm/")}


def are_gone(pids, within_s=120):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not pids & living().keys():
            return True
        time.sleep(0.1)
    return False


def test_a_run_that_is_stopped_at_its_start_reports_it_and_leaves_nothing(tmp_path):
    (tmp_path / "waiting.py").write_text(
        "import time, pathlib\n\n\ndef load():\n    pathlib.Path('waits').touch()\n    time.sleep(100)\n"
    )
    command = [sys.executable, "-m", "fedresearch.main", "tracker=none", "hydra.run.dir=run"]
    command.append("dataset._target_=waiting.load")  # by itself, the start may be over before the signal arrives
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr.splitlines()) == (143, ["interrupted"])
    assert not (tmp_path / "run").exists()


# torch imports NumPy in C, and continues without it if that raises anything.
SIGNALLED = """
import os, signal, sys
from fedresearch import main
sys.addaudithook(
    lambda event, words: event == "import" and words[0] == "MODULE" and os.kill(os.getpid(), signal.SIGTERM)
)
main.command()
"""


@pytest.mark.parametrize("module", ["hydra.main", "numpy._core._multiarray_umath"])
def test_a_signal_during_an_import_ends_the_command(tmp_path, module):
    command = [sys.executable, "-c", SIGNALLED.replace("MODULE", module), "tracker=none", "hydra.run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("hardware", ["cpu", "workers", "ray"])
def test_an_interrupted_run_leaves_no_process_and_no_shared_memory(start, tmp_path, hardware):
    process, others = start(hardware)
    shared = {path for pid in (process.pid, *others) for path in mapped(pid)}
    assert len(others) >= {"cpu": 0, "workers": 2, "ray": 4}[hardware]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes of the group at once
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stdout.splitlines()[-9].startswith("interrupted after ")
    *lines, resumes, last = stderr.strip().splitlines()
    assert (resumes, last) == (f"fedresearch resume={tmp_path}", "interrupted")
    assert resumes not in lines
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    rounds = [row["round"] for row in read_rows(tmp_path)]
    assert rounds == list(range(len(rounds)))
    assert not list(tmp_path.glob(".*tmp"))
    assert are_gone(others)
    assert not [path for path in shared if path.exists()]


def test_workers_end_with_a_main_process_that_was_killed(start):
    process, others = start("workers")
    process.kill()
    assert are_gone(others)
