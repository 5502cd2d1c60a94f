import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_it_runs(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "scripts.benchmark", "--smoke", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
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
