"""What a sweeper gets of a job; Optuna's, where it is installed."""

import json
import os
from importlib.util import find_spec

import pytest
import yaml

from fedresearch.study.sweep.job import objective
from tests import warm
from tests.records import make


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"clients/accuracy": 0.5, "clients/loss": 2.0}, {"clients/accuracy": 0.25, "clients/loss": 1.0}],
            0.25,
        ),
        ([{"clients/accuracy": 0.5}, {"train/loss": 1.0}], 0.5),  # the last round was none to evaluate in
        ([{"clients/accuracy": 0.5}, {"clients/accuracy": 0.4}, {"clients/accuracy": 0.9}], 0.4),  # resumed with more
        ([{"clients/loss": 2.0}, {"clients/loss": 1.5}], 1.5),  # a regression
        ([{"eval/accuracy": 0.5}], None),  # test data
    ],
)
def test_the_validation_data_of_the_last_round_evaluated(rows, expected, tmp_path):
    make(tmp_path / "job", rows=rows)
    assert objective(tmp_path / "job", 2) == expected


@pytest.mark.parametrize("status", ["diverged", "failed", "interrupted", "running"])
def test_a_job_that_did_not_finish_has_none(status, tmp_path):
    make(tmp_path / "job", status=status, rows=[{"clients/accuracy": 0.5}])
    assert objective(tmp_path / "job", 2) is None


def test_a_job_that_never_became_a_run_has_none(tmp_path):
    assert objective(tmp_path, 2) is None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_optuna_sweeper") is None, reason="hydra-optuna-sweeper is missing")
def test_optuna_gets_objectives_and_continues(tmp_path):
    def sweep(trials):
        words = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", f"hydra.sweeper.n_trials={trials}"]
        words += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "hydra.sweep.dir=sweep", "tracker=none"]
        words += [
            "optimizer.lr=tag(log, interval(0.001, 1.0))",
            "model=logistic",
            "federation.num_rounds=1",
            "federation.evaluate_initial=false",
        ]
        done = warm.python("-m", "fedresearch.main", "-m", *words, cwd=tmp_path, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "Failed" not in sweep(2)
    assert sweep(3).count("is finished: skipped") == 2  # the sweeper asked for the same two again
    runs = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/metrics.jsonl")}
    rates = {run: json.loads((run / "run.json").read_text())["config"]["optimizer"]["lr"] for run in runs}
    best = max(runs, key=lambda run: runs[run]["clients/accuracy"])
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert len(runs) == 3
    assert found["best_value"] == runs[best]["clients/accuracy"]
    assert found["best_params"] == {"optimizer.lr": rates[best]}
