"""The W&B workspace, built where no server answers and read back from its JSON."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from fedresearch.runs.record import read_rows
from scripts import wandb_workspace
from tests.directories import conduct

ROOT = Path(__file__).parents[1]
# wandb-workspaces uses names that pydantic deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def specs():
    command = [sys.executable, "-m", "scripts.wandb_workspace", "somebody/ablations", "--dry-run"]
    nobody = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    nowhere = {**nobody, "HOME": os.devnull, "WANDB_BASE_URL": "http://127.0.0.1:9"}  # the discard port: nobody listens
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def view(specs):
    from wandb_workspaces.workspaces.internal import View

    return View.model_validate(specs["workspace"])


def panels(view):
    """Return the panels of each section, by its name."""
    sections = view.spec.section.panel_bank_config.sections
    return {section.name: [panel.config for panel in section.panels] for section in sections}


def lines(view):
    """Return the panels that draw columns over rounds or bytes."""
    return [panel for panel in chain(*panels(view).values()) if hasattr(panel, "metrics")]


def test_every_column_is_one_of_a_row(view, tmp_path):
    _, row = read_rows(conduct(tmp_path / "run", "model=logistic", "federation.num_rounds=1"))
    for panel in lines(view):
        assert {panel.x_axis, *panel.metrics, *re.findall(r"\$\{(.*?)\}", panel.x_expression or "")} <= row.keys()


def test_what_is_drawn(view):
    assert (view.entity, view.project) == ("somebody", "ablations")
    drawn = panels(view)
    (final,) = drawn.pop("Final models")
    assert final.media_keys == ["final/partition", "final/clients", "final/confusion"]
    assert {name: [column for panel in each for column in panel.metrics] for name, each in drawn.items()} == {
        "Curves by cell": ["eval/accuracy", "eval/loss", "train/loss"],
        "Fairness": [f"clients/accuracy_{of}" for of in ("mean", "p10", "worst", "std")],
        "Communication": ["eval/accuracy", *(f"comm/bytes_{way}" for way in ("up", "down", "up_total", "down_total"))],
        "System": ["time/round_s", "clients/failed", "local/lr", "update/norm", "update/cosine"],
    }


def test_over_rounds_but_for_the_accuracy_over_bytes(view):
    cost, *_ = panels(view)["Communication"]
    assert cost.x_axis == "comm/bytes_up_total"
    assert cost.x_expression == "${comm/bytes_up_total} + ${comm/bytes_down_total}"
    assert view.spec.section.settings.x_axis == "round"
    for panel in lines(view):
        assert panel is cost or (panel.x_axis, panel.x_expression) == ("round", None)


def test_a_line_is_a_group_with_a_band_over_its_seeds(view):
    (runs,) = view.spec.section.run_sets
    assert [(key.section, key.name) for key in runs.grouping] == [("run", "group")]
    for panel in lines(view):
        assert (panel.aggregate, panel.group_by, panel.group_agg, panel.group_area) == (True, "group", "mean", "stddev")


def test_the_report_shows_the_same_panels_by_group_and_the_best_round(specs):
    report = specs["report"]
    assert (report["project"]["entityName"], report["project"]["name"]) == ("somebody", "ablations")
    blocks = report["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == [*wandb_workspace.SECTIONS, "Results"]
    drawn = [[panel["config"] for panel in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    columns = [tuple(panel["metrics"][0] for panel in panels) for panels in drawn[:-1]]
    assert columns == [*wandb_workspace.SECTIONS.values()]
    best, final = drawn[-1]
    assert (best["metrics"], final["mediaKeys"]) == (["best/eval/accuracy"], wandb_workspace.FIGURES)
    assert all(grid["runSets"][0]["grouping"][0]["name"] == "group" for grid in grids)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(wandb_workspace, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["wandb_workspace", "somebody/ablations"])
    with pytest.raises(SystemExit) as raised:
        wandb_workspace.main()
    assert raised.value.code == (
        'error: the package wandb-workspaces is not installed; try pip install "fedresearch[dashboard]"'
    )
