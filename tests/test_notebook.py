"""The notebook runs as it is committed, from its first cell to its last, and its numbers agree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from tests import warm

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "examples" / "sweep_to_figure.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_it_runs_from_a_sweep_to_a_figure_a_report_and_a_model(tmp_path, monkeypatch):
    """In this process, whose Python commands start as forks."""
    start = subprocess.run

    def run(command, **options):
        if command[0] != sys.executable:
            return start(command, **options)
        return warm.python(*command[1:], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    try:
        exec("\n\n".join("".join(cell["source"]) for cell in CELLS), names)
    finally:
        plt.close("all")
    assert names["accuracy"] == names["last"]
    assert {*names["runs"]} == {(strategy, seed) for strategy in ("fedavg", "scaffold") for seed in (0, 1)}
    assert len(names["rows"]) == 4 * 6  # rounds 0 to 5
    assert (tmp_path / "accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "report" / "report.html").exists()
