import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark.environment import versions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def benchmark(out, *options):
    command = [sys.executable, "-m", "scripts.benchmark", *options, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done


@pytest.mark.skipif(not versions(), reason="python -m scripts.benchmark --peers-env has not run")
def test_other_frameworks_do_the_loops_work(tmp_path):
    options = ["--workloads", "W1a", "--hardware", "cpu", "--peers", "loop", *versions(), "--rounds", "2"]
    figures, _ = benchmark(tmp_path / "figures.json", *options)
    sides = figures["workloads"]["W1a"]["sides"]
    assert all(sides[name]["same_work"] for name in versions())


def test_it_runs(tmp_path):
    figures, done = benchmark(tmp_path / "figures.json", "--smoke")
    assert figures["machine"]["cores"] > 0
    sides = figures["workloads"]["W1a"]["sides"]
    assert {"cpu", "loop", "local", "local loop"} == sides.keys()
    for own in sides.values():
        assert own["round_s"] > 0
        assert own["first_s"] > 0
        assert len(own["rounds_s"]) == 2
    assert sides["cpu"]["times_loop"] > 0
    assert sides["local"]["times_local loop"] > 0
    assert sides["cpu"]["same_work"]
    assert "| cpu |" in done.stdout
