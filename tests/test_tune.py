"""Tuning: the best value of a key for each cell, by validation data, and where the final runs find it."""

import json
import os

import pytest
from omegaconf.errors import OmegaConfBaseException

from fedresearch.config import explain
from fedresearch.errors import InputError
from fedresearch.report.load import load
from fedresearch.tune import choose
from tests import warm
from tests.records import make


def sweep(folder, accuracies, **options):
    """Write a run for each partition, rate and seed, with its validation accuracies of two rounds."""
    for (alpha, lr, seed), validation in accuracies.items():
        rows = [{"clients/eval_acc": value, "eval/accuracy": 1 - value} for value in validation]
        sections = {"partitioner": {"_target_": "dirichlet", "alpha": alpha}, "optimizer": {"lr": lr, "schedule": {}}}
        make(folder / f"{alpha}_{lr}_{seed}", seed=seed, rows=rows, **{**sections, **options})


ACCURACIES = {
    (0.1, 0.01, 1000): [0.1, 0.3],
    (0.1, 0.1, 1000): [0.9, 0.6],  # .6 and .2: on average .4
    (0.1, 0.1, 1001): [0.9, 0.2],
    (0.1, 1.0, 1000): [0.9, 0.35],
    (1.0, 0.01, 1000): [0.1, 0.7],
    (1.0, 0.1, 1000): [0.1, 0.5],
}


def test_the_best_mean_over_seeds_of_the_validation_data_is_chosen_for_each_cell(tmp_path):
    sweep(tmp_path, ACCURACIES)
    chosen, warnings = choose(load([tmp_path]), "optimizer.lr", "last")
    assert chosen == {
        "key": "optimizer.lr",
        "keys": ["partitioner.alpha"],
        "selection": "clients/eval_acc after the last round",
        "seeds": [1000, 1001],
        "cells": [
            {"cell": [0.1], "value": 0.1, "tried": {"0.01": 0.3, "0.1": pytest.approx(0.4), "1.0": 0.35}},
            {"cell": [1.0], "value": 0.01, "tried": {"0.01": 0.7, "0.1": 0.5}},
        ],
    }
    assert warnings == ["1.0: optimizer.lr=0.01 is the smallest that was tried; try smaller ones too"]


def test_a_value_of_which_one_seed_diverged_is_not_chosen(tmp_path):
    sweep(tmp_path, {**ACCURACIES, (0.1, 0.1, 1001): [0.9, 0.9]})
    make(
        tmp_path / "diverged",
        seed=1002,
        status="diverged",
        rows=[{"clients/eval_acc": 1.0}],
        partitioner={"_target_": "dirichlet", "alpha": 0.1},
        optimizer={"lr": 0.1, "schedule": {}},
    )
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert chosen["cells"][0] == {"cell": [0.1], "value": 1.0, "tried": {"0.01": 0.3, "0.1": None, "1.0": 0.35}}


def test_how_long_runs_are_tells_a_cell_only_where_nothing_else_does(tmp_path):
    for num_rounds, alpha in ((5, 0.1), (9, 1.0)):
        accuracies = {(alpha, lr, 1000): [accuracy] for lr, accuracy in ((0.1, 0.2), (0.2, 0.4), (0.3, 0.1))}
        sweep(tmp_path, accuracies, federation={"num_rounds": num_rounds})
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert (chosen["keys"], [entry["cell"] for entry in chosen["cells"]]) == (["partitioner.alpha"], [[0.1], [1.0]])
    sweep(tmp_path / "longer", {(0.1, 0.2, 1000): [0.5]}, federation={"num_rounds": 9})
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert chosen["keys"] == ["partitioner.alpha", "federation.num_rounds"]


def test_the_lowest_loss_is_the_best(tmp_path):
    for lr, loss in ((0.1, 3.0), (0.2, 1.0), (0.3, 2.0)):
        row = {"eval/loss": 0.0, "clients/eval_loss": loss}
        make(tmp_path / str(lr), rows=[row], optimizer={"lr": lr, "schedule": {}})
    chosen, warnings = choose(load([tmp_path]), "optimizer.lr", "last")
    assert [entry["value"] for entry in chosen["cells"]] == [0.2]
    assert chosen["cells"][0]["tried"] == {"0.1": 3.0, "0.2": 1.0, "0.3": 2.0}
    assert not warnings


def test_what_cannot_be_tuned_is_told(tmp_path):
    sweep(tmp_path / "good", ACCURACIES)
    with pytest.raises(InputError, match=r"local.epochs does not vary .* try --key optimizer.lr or partitioner.alpha"):
        choose(load([tmp_path / "good"]), "local.epochs", "last")
    with pytest.raises(InputError, match=r"--select best_test takes the best round of each, .* try --select last"):
        choose(load([tmp_path / "good"]), "optimizer.lr", "best_test")
    make(tmp_path / "good" / "half", seed=7, status="interrupted", rows=[{}])
    with pytest.raises(InputError, match=r"1 of 7 runs are not at their end, .*half is interrupted"):
        choose(load([tmp_path / "good"]), "optimizer.lr", "last")
    for lr in (0.1, 0.2):
        make(tmp_path / "blind" / str(lr), rows=[{"eval/accuracy": 0.5}], optimizer={"lr": lr, "schedule": {}})
    with pytest.raises(InputError, match="no run has clients/eval_acc"):
        choose(load([tmp_path / "blind"]), "optimizer.lr", "last")


def test_the_config_finds_what_was_chosen(tmp_path, compose):
    path = tmp_path / "rates.json"
    cells = [{"cell": ["dirichlet", 0.5], "value": 0.02}, {"cell": ["iid", 0.5], "value": 0.3}]
    path.write_text(
        json.dumps(
            {
                "key": "optimizer.lr",
                "keys": ["partitioner", "federation.fraction_train"],
                "seeds": [1000],
                "cells": cells,
            }
        )
    )
    rate = f"optimizer.lr=${{tuned:{path}}}"
    assert compose(rate)[0].optimizer["lr"] == 0.02
    assert compose(rate, "partitioner=iid")[0].optimizer["lr"] == 0.3
    refusals = {
        ("partitioner=shard",): 'has no value for partitioner, federation.fraction_train = ["shard", 0.5]; it has '
        'those of ["dirichlet", 0.5], ["iid", 0.5]',
        ("seed=1000",): "was chosen on runs with seed=1000; try a fresh one",
    }
    for overrides, refusal in refusals.items():
        with pytest.raises(OmegaConfBaseException) as raised:
            compose(rate, *overrides)
        assert explain(raised.value).args[0].startswith(f"{path} {refusal}")
    with pytest.raises(OmegaConfBaseException) as raised:
        compose(f"optimizer.momentum=${{tuned:{path}}}")
    assert "holds values of optimizer.lr, and optimizer.momentum asks for one" in explain(raised.value).args[0]
    with pytest.raises(OmegaConfBaseException) as raised:
        compose("optimizer.lr=${tuned:3}")
    assert "3.json holds no tuned values" in explain(raised.value).args[0]
    path.write_text("{")
    with pytest.raises(OmegaConfBaseException) as raised:
        compose(rate)
    assert "holds no tuned values" in explain(raised.value).args[0]


def test_values_that_are_no_numbers_are_tuned_too(tmp_path):
    for number, (widths, accuracy) in enumerate((([8], 0.5), ([8, 8], 0.7), (None, 0.1))):
        make(
            tmp_path / str(number),
            rows=[{"clients/eval_acc": accuracy, "eval/accuracy": 0.5}],
            model={"widths": widths},
        )
    chosen, warnings = choose(load([tmp_path]), "model.widths", "last")
    assert chosen["cells"] == [{"cell": [], "value": [8, 8], "tried": {"[8]": 0.5, "[8, 8]": 0.7, "null": 0.1}}]
    assert not warnings


def test_a_key_that_not_all_options_have_is_told(tmp_path):
    for mu in (0.1, 1):
        server = {"_target_": "FedProx", "proximal_mu": mu}
        make(
            tmp_path / f"{mu}", choices={"strategy": "fedprox"}, strategy={"server": server}, rows=[{"eval/loss": 1.0}]
        )
    make(tmp_path / "fedavg", rows=[{"eval/loss": 1.0}])
    with pytest.raises(InputError, match=r"strategy=fedavg has no strategy.server.proximal_mu"):
        choose(load([tmp_path]), "strategy.server.proximal_mu", "last")


@pytest.mark.slow
def test_a_sweep_is_tuned_and_run_on_fresh_seeds(tmp_path):
    def run(module, *arguments):
        return warm.python("-m", f"fedresearch.{module}", *arguments, cwd=tmp_path, env=dict(os.environ))

    short = ["tracker=none", "model=logistic", "federation.num_rounds=5", "federation.num_supernodes=3"]
    alphas = "partitioner.alpha=0.5,5"
    tuning = run("main", "tune=lr", "optimizer.lr=0.0001,0.1", alphas, *short, "hydra.sweep.dir=tuning")
    assert tuning.returncode == 0, tuning.stderr
    tuned = run("tune", "tuning")
    assert tuned.stdout.splitlines()[0].startswith("0.5: optimizer.lr=0.1 (0.0001: ")
    rate = "optimizer.lr=${tuned:tuned.json}"
    final = run("main", "-m", rate, alphas, "seed=0", *short, "hydra.sweep.dir=final")
    assert final.returncode == 0, final.stderr
    rates = [json.loads(path.read_text())["config"]["optimizer"]["lr"] for path in tmp_path.glob("final/*/run.json")]
    assert rates == [0.1] * 2
