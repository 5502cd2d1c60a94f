"""The notebook runs as it is committed, from its first cell to its last, and its numbers agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "examples" / "sweep_to_figure.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_it_runs_from_a_sweep_to_a_figure_a_report_and_a_model(tmp_path):
    code = "\n\n".join("".join(cell["source"]) for cell in CELLS)
    checks = [
        "assert accuracy == last",
        "assert {*runs} == {(strategy, seed) for strategy in ('fedavg', 'scaffold') for seed in (0, 1)}",
        "assert len(rows) == 4 * 6",  # rounds 0 to 5
    ]
    (tmp_path / "notebook.py").write_text("\n".join([code, *checks]))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "report" / "report.html").exists()
