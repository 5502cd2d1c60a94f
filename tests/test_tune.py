"""Tuning: the best value of a key for each cell by validation data, and its use in final runs."""

import json
import os

import pytest
from omegaconf.errors import OmegaConfBaseException

from fedresearch.config import explain
from fedresearch.errors import InputError
from fedresearch.study.report.load import load
from fedresearch.study.tune import choose
from tests import warm
from tests.records import make


def sweep(folder, accuracies, **options):
    """Write a run for each partition, rate and seed, with its validation accuracies of two rounds."""
    for (alpha, lr, seed), validation in accuracies.items():
        rows = [{"clients/accuracy": value, "eval/accuracy": 1 - value} for value in validation]
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
        "fixed": {
            "strategy": "fedavg",
            "partitioner": "iid",
            "partitioner._target_": "dirichlet",
            "strategy.server._target_": "FedAvg",
        },
        "selection": "clients/accuracy after the last round",
        "seeds": [1000, 1001],
        "cells": [
            {"cell": [0.1], "value": 0.1, "tried": [[0.01, 0.3], [0.1, pytest.approx(0.4)], [1.0, 0.35]], "fixed": {}},
            {"cell": [1.0], "value": 0.01, "tried": [[0.01, 0.7], [0.1, 0.5]], "fixed": {}},
        ],
    }
    assert warnings == [
        "0.1: optimizer.lr=0.01 was tried on seeds 1000, but optimizer.lr=0.1 on seeds 1000, 1001, so luck matters; "
        "try all values on the same seeds",
        "1.0: optimizer.lr=0.01 is the smallest value tried; try smaller values too",
    ]


def test_clients_own_models_are_tuned_in_the_cells_that_have_them(tmp_path):
    """Ditto's global model is FedAvg's, and the best rate for it may be bad for the clients' own models."""
    for lr, shared, personal in [(0.01, 0.5, 0.9), (0.1, 0.8, 0.6)]:
        for strategy in ("fedavg", "ditto"):
            own = strategy == "ditto"
            row = {"clients/accuracy": shared} | ({"personal/accuracy": personal} if own else {})
            options = {
                "choices": {"strategy": strategy},
                "optimizer": {"lr": lr, "schedule": {}},
                "record": {"own_models": own},
            }
            make(tmp_path / f"{strategy}_{lr}", seed=1000, rows=[row], **options)
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert {tuple(each["cell"]): each["value"] for each in chosen["cells"]} == {("ditto",): 0.01, ("fedavg",): 0.1}
    assert {*chosen["selection"].split("; ")} == {
        f"{models}/accuracy after the last round" for models in ("clients", "personal")
    }


def test_a_value_with_a_diverged_seed_is_not_chosen(tmp_path):
    sweep(tmp_path, {**ACCURACIES, (0.1, 0.1, 1001): [0.9, 0.9]})
    make(
        tmp_path / "diverged",
        seed=1002,
        status="diverged",
        rows=[{"clients/accuracy": 1.0}],
        partitioner={"_target_": "dirichlet", "alpha": 0.1},
        optimizer={"lr": 0.1, "schedule": {}},
    )
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert chosen["cells"][0] == {
        "cell": [0.1],
        "value": 1.0,
        "tried": [[0.01, 0.3], [0.1, None], [1.0, 0.35]],
        "fixed": {},
    }


def test_the_number_of_rounds_identifies_a_cell_only_if_no_other_key_does(tmp_path):
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
        row = {"eval/loss": 0.0, "clients/loss": loss}
        make(tmp_path / str(lr), rows=[row], optimizer={"lr": lr, "schedule": {}})
    chosen, warnings = choose(load([tmp_path]), "optimizer.lr", "last")
    assert [entry["value"] for entry in chosen["cells"]] == [0.2]
    assert chosen["cells"][0]["tried"] == [[0.1, 3.0], [0.2, 1.0], [0.3, 2.0]]
    assert not warnings


def test_impossible_tuning_is_refused(tmp_path):
    sweep(tmp_path / "good", ACCURACIES)
    with pytest.raises(
        InputError, match=r"local.epochs does not vary .*; varying keys: optimizer.lr, partitioner.alpha"
    ):
        choose(load([tmp_path / "good"]), "local.epochs", "last")
    make(tmp_path / "constant" / "run")
    said = "optimizer.lr does not vary among these runs, and no other key does; sweep it first, as with fedresearch -m "
    with pytest.raises(InputError, match=f"{said}optimizer.lr=VALUE,VALUE"):
        choose(load([tmp_path / "constant"]), "optimizer.lr", "last")
    with pytest.raises(InputError, match=r"--select best_test takes the best round of each run, .* try --select last"):
        choose(load([tmp_path / "good"]), "optimizer.lr", "best_test")
    make(tmp_path / "good" / "half", seed=7, status="interrupted", rows=[{}])
    with pytest.raises(InputError, match=r"1 of 7 runs are unfinished: .*half is interrupted"):
        choose(load([tmp_path / "good"]), "optimizer.lr", "last")
    for lr in (0.1, 0.2):
        make(tmp_path / "blind" / str(lr), rows=[{"eval/accuracy": 0.5}], optimizer={"lr": lr, "schedule": {}})
    with pytest.raises(InputError, match="no run has clients/accuracy"):
        choose(load([tmp_path / "blind"]), "optimizer.lr", "last")


def test_the_config_resolves_the_chosen_value(tmp_path, compose):
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
        'values for ["dirichlet", 0.5], ["iid", 0.5]',
        ("seed=1000",): "was chosen on runs with seed=1000; try another seed",
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
    assert "3.json holds no tuned values (No such file or directory); fedresearch" in explain(raised.value).args[0]
    path.write_text("{")
    with pytest.raises(OmegaConfBaseException) as raised:
        compose(rate)
    assert "holds no tuned values" in explain(raised.value).args[0]


def test_shared_settings_are_kept_except_those_that_final_runs_may_change(tmp_path):
    federation = {
        "num_supernodes": 10,
        "num_rounds": 5,
        "evaluate_every": 5,
        "fraction_evaluate": 1.0,
        "target_accuracy": None,
    }
    sections = {
        "name": "tuning",
        "dataset": {"root": "/data", "path": "/hub", "cache_dir": "/cache", "seed": 3, "mean": [0.5]},
        "federation": federation,
        "validation": {"fraction": 0.1, "seed": 3},
        "hardware": {"_target_": "batched", "chunk": 8, "device": "cuda:0"},
        "choices": {"dataset": "mnist", "partitioner": "dirichlet", "hardware": "batched", "tune": "lr"},
    }
    sweep(tmp_path, {(0.1, 0.1, 1000): [0.1], (0.1, 0.2, 1000): [0.2]}, **sections)
    assert choose(load([tmp_path]), "optimizer.lr", "last")[0]["fixed"] == {
        "strategy": "fedavg",
        "partitioner": "dirichlet",
        "dataset": "mnist",
        "partitioner._target_": "dirichlet",
        "partitioner.alpha": 0.1,
        "strategy.server._target_": "FedAvg",
        "dataset.mean": [0.5],
        "federation.num_supernodes": 10,
    }


def table(path, key="optimizer.lr", value=0.02, **fields):
    """Write a file with one value for all runs; return the override that uses it."""
    chosen = {"key": key, "keys": [], "seeds": [], "cells": [{"cell": [], "value": value}], **fields}
    path.write_text(json.dumps(chosen))
    return f"{key}=${{tuned:{path}}}"


def refusal(compose, *overrides):
    with pytest.raises(OmegaConfBaseException) as raised:
        compose(*overrides)
    return explain(raised.value).args[0]


def test_a_value_tuned_with_other_settings_is_refused(tmp_path, compose):
    path = tmp_path / "rates.json"
    fixed = {
        "model": "logistic",
        "model._target_": "fedresearch.models.logistic.Logistic",  # not worth a word beside the model
        "schedule": "constant",
        "federation.num_supernodes": 10,
        "local.steps": None,
        "partitioner.alpha": 0.5,
        "partitioner.num_partitions": 10,
        "dataset.declares.input_shape": [1, 8, 8],
    }
    rate = table(path, fixed=fixed)
    assert compose(rate, "model=logistic", "hardware=batched", "tune=lr")[0].optimizer["lr"] == 0.02
    assert refusal(compose, rate, "partitioner.alpha=1", "federation.num_supernodes=20") == (
        f"{path} was tuned with model=logistic (here mlp), federation.num_supernodes=10 (here 20), "
        "partitioner.alpha=0.5 (here 1) and 1 more; tune this cell with fedresearch tune, "
        "or write optimizer.lr=VALUE"
    )
    differences = {
        ("schedule=cosine",): "schedule=constant (here cosine)",
        ("local.steps=3", "local.epochs=null"): "local.steps=null (here 3)",
        ("partitioner=iid",): "partitioner.alpha=0.5 (here unset)",
        ("partitioner.num_partitions=${local.epochs}",): "partitioner.num_partitions=10 (here 5)",
        ("dataset.declares.input_shape=[1,8,9]",): "dataset.declares.input_shape=[1, 8, 8] (here [1, 8, 9])",
    }
    for overrides, difference in differences.items():
        assert refusal(compose, rate, "model=logistic", *overrides) == (
            f"{path} was tuned with {difference}; tune this cell with fedresearch tune, or write optimizer.lr=VALUE"
        )


def test_settings_of_options_that_only_some_cells_have_are_kept(tmp_path, compose):
    for lr in (0.1, 0.2):
        for strategy, server in {"fedavg": {}, "fedprox": {"proximal_mu": 0.1}}.items():
            sections = {"choices": {"strategy": strategy}, "strategy": {"server": server}, "optimizer": {"lr": lr}}
            make(tmp_path / f"{strategy}{lr}", seed=9, rows=[{"clients/accuracy": lr}], **sections)
    chosen, _ = choose(load([tmp_path]), "optimizer.lr", "last")
    assert chosen["keys"] == ["strategy"]
    assert {(*each["cell"],): each["fixed"] for each in chosen["cells"]} == {
        ("fedavg",): {},
        ("fedprox",): {"strategy.server.proximal_mu": 0.1},
    }
    rate = table(tmp_path / "rates.json", keys=["strategy"], cells=chosen["cells"])
    for strategy in ("strategy=fedavg", "strategy=fedprox strategy.server.proximal_mu=0.1"):
        assert compose(rate, *strategy.split())[0].optimizer["lr"] == 0.2
    refused = refusal(compose, rate, "strategy=fedprox", "strategy.server.proximal_mu=1")
    assert "was tuned with strategy.server.proximal_mu=0.1 (here 1); " in refused


def test_tuned_values_may_refer_to_each_other(tmp_path, compose):
    epochs = table(tmp_path / "epochs.json", "local.epochs", 3, fixed={"optimizer.lr": 0.02})
    rate = table(tmp_path / "rates.json", fixed={"local.epochs": 3, "optimizer.weight_decay": 0.02})
    config, _ = compose(rate, epochs, "optimizer.weight_decay=${optimizer.lr}")
    assert (config.optimizer["lr"], config.local.epochs, config.optimizer["weight_decay"]) == (0.02, 3, 0.02)
    rate = table(tmp_path / "rates.json", fixed={"local.epochs": 5})
    assert "was tuned with local.epochs=5 (here 3)" in refusal(compose, rate, epochs)


def test_a_list_may_identify_a_cell(tmp_path, compose):
    rate = table(tmp_path / "rates.json", keys=["model.widths"], cells=[{"cell": [[8, 8]], "value": 0.3}])
    assert compose(rate, "model.widths=[8,8]")[0].optimizer["lr"] == 0.3


def test_a_key_that_always_equals_another_is_refused(tmp_path):
    for lr in (0.1, 0.2):
        make(tmp_path / str(lr), rows=[{"clients/accuracy": lr}], optimizer={"lr": lr}, strategy={"alias": {"lr": lr}})
    with pytest.raises(InputError, match=r"strategy.alias.lr equals optimizer.lr in every run; use optimizer.lr"):
        choose(load([tmp_path]), "strategy.alias.lr", "last")


def test_values_tried_on_different_seeds_are_warned_of(tmp_path):
    accuracies = {(0.1, lr, seed): [0.5 - abs(lr - 2)] for lr, seed in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1))}
    sweep(tmp_path / "same", accuracies)
    assert choose(load([tmp_path / "same"]), "optimizer.lr", "last")[1] == []
    del accuracies[0.1, 3, 0], accuracies[0.1, 3, 1]
    sweep(tmp_path / "other", {**accuracies, (0.1, 3, 2): [0.1]})
    assert choose(load([tmp_path / "other"]), "optimizer.lr", "last")[1] == [
        "all runs: optimizer.lr=1 was tried on seeds 0, 1, but optimizer.lr=3 on seeds 2, so luck matters; "
        "try all values on the same seeds"
    ]


@pytest.mark.parametrize("metric", ["clients/accuracy", "clients/loss"])
def test_the_first_of_equally_good_values_is_chosen(tmp_path, metric):
    other_metric = metric.replace("clients/accuracy", "eval/accuracy").replace("clients/loss", "eval/loss")
    for lr in (0.1, 0.2, 0.3):
        make(tmp_path / str(lr), rows=[{metric: 0.5, other_metric: 0.5}], optimizer={"lr": lr})
    assert choose(load([tmp_path]), "optimizer.lr", "last")[0]["cells"][0]["value"] == 0.1


def test_numbers_are_compared_only_with_numbers(tmp_path):
    for number, (width, accuracy) in enumerate(((None, 0.1), ("1", 0.2), (1, 0.3), (2, 0.4), (True, 0.3))):
        make(tmp_path / str(number), rows=[{"clients/accuracy": accuracy}], model={"width": width})
    chosen, warnings = choose(load([tmp_path]), "model.width", "last")
    tried = chosen["cells"][0]["tried"]
    assert sorted(map(json.dumps, tried)) == ['["1", 0.2]', "[1, 0.3]", "[2, 0.4]", "[null, 0.1]", "[true, 0.3]"]
    assert warnings == ["all runs: model.width=2 is the largest value tried; try larger values too"]


def test_values_that_are_not_numbers_can_be_tuned(tmp_path):
    for number, (widths, accuracy) in enumerate((([8], 0.5), ([8, 8], 0.7), (None, 0.1))):
        make(
            tmp_path / str(number),
            rows=[{"clients/accuracy": accuracy, "eval/accuracy": 0.5}],
            model={"widths": widths},
        )
    chosen, warnings = choose(load([tmp_path]), "model.widths", "last")
    assert chosen["cells"] == [
        {"cell": [], "value": [8, 8], "tried": [[None, 0.1], [[8, 8], 0.7], [[8], 0.5]], "fixed": {}}
    ]
    assert not warnings


def test_a_key_that_some_options_do_not_have_is_refused(tmp_path):
    for mu in (0.1, 1):
        server = {"_target_": "FedProx", "proximal_mu": mu}
        make(
            tmp_path / f"{mu}", choices={"strategy": "fedprox"}, strategy={"server": server}, rows=[{"eval/loss": 1.0}]
        )
    make(tmp_path / "fedavg", rows=[{"eval/loss": 1.0}])
    with pytest.raises(InputError, match=r"strategy=fedavg does not have strategy.server.proximal_mu"):
        choose(load([tmp_path]), "strategy.server.proximal_mu", "last")


@pytest.mark.slow
def test_a_sweep_is_tuned_and_run_on_fresh_seeds(tmp_path):
    def run(module, *arguments):
        verb = [] if module == "main" else [module]
        return warm.python("-m", "fedresearch.main", *verb, *arguments, cwd=tmp_path, env=dict(os.environ))

    short = ["tracker=none", "model=logistic", "federation.num_rounds=3", "federation.num_supernodes=3"]
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
