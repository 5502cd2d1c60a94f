"""Loading a model from a run's directory: the global one, the best one, a client's own, and never a damaged one."""

import os
import shutil

import numpy as np
import pytest
import torch

from fedresearch import load_model
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.local.metrics import accuracy
from fedresearch.local.objective import evaluate
from fedresearch.runs.record import dump_record, read_record, read_rows
from tests.directories import MLP, SHORT, compose, conduct

PERSONAL = ["fedrep", "local_only", "ditto"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function from a strategy to the directory of its run, which tests must copy before writing."""
    folder = tmp_path_factory.mktemp("runs")

    def run(strategy):
        if not (folder / strategy).exists():
            conduct(folder / strategy, f"strategy={strategy}", "partitioner=pathological")
        return folder / strategy

    return run


def experiment_of(directory):
    words = [*MLP, *SHORT, *read_record(directory)["overrides"]]
    return Experiment(*compose(*words))


@pytest.mark.parametrize("strategy", PERSONAL)
def test_clients_own_models_have_the_accuracies_that_were_recorded(runs, strategy):
    directory = runs(strategy)
    data = experiment_of(directory).data
    metrics = {"accuracy": accuracy}
    measured = [evaluate(load_model(directory, i), *data.validation_samples(i), metrics=metrics) for i in range(5)]
    last = read_rows(directory)[-1]
    for name in ("loss", "accuracy"):
        values = [of_client[name] for of_client in measured]
        assert last[f"personal/{name}_mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert last[f"personal/{name}_std"] == pytest.approx(np.std(values), abs=1e-6)


@pytest.mark.parametrize("strategy", [*PERSONAL, "fedbabu"])
def test_loading_the_global_model_of_a_personal_run_warns(runs, strategy):
    directory = runs(strategy)
    with pytest.warns(UserWarning, match=r"clients' own models \(personal/.*load_model\(DIR, client=ID\)"):
        model = load_model(directory)
    last, data = read_rows(directory)[-1], experiment_of(directory).data
    assert evaluate(model, data.test_x, data.test_y)["loss"] == pytest.approx(last["eval/loss"], abs=1e-6)


def test_which_parts_stay_on_the_clients_is_recorded(runs):
    assert read_record(runs("fedrep"))["personal"] == ["layers.3.bias", "layers.3.weight"]
    assert read_record(runs("ditto"))["personal"] == []
    assert [read_record(runs(strategy))["own_models"] for strategy in ("ditto", "fedbabu", "fedavg")] == [
        True,
        True,
        False,
    ]


def test_a_client_that_never_trained_has_the_initial_parts(tmp_path):
    options = ["strategy=fedrep", "federation.num_rounds=1", "federation.fraction_train=0.2"]
    directory = conduct(tmp_path / "run", *options)
    with pytest.warns(UserWarning, match="have their initial values"):
        state = load_model(directory).state_dict()
    others = [load_model(directory, client).state_dict() for client in range(5)]
    differ = [not torch.equal(other["layers.3.weight"], state["layers.3.weight"]) for other in others]
    assert differ.count(True) == 1
    assert all(torch.equal(other["layers.1.weight"], state["layers.1.weight"]) for other in others)


@pytest.mark.parametrize(
    ("client", "line"), [(5, "client 5 does not exist; try one from 0 to 4"), (-1, "client -1 does not exist")]
)
def test_a_missing_client_is_rejected(runs, client, line):
    with pytest.raises(InputError, match=line):
        load_model(runs("fedrep"), client)


@pytest.mark.parametrize("client", ["0", 0.0, [0]])
def test_a_client_must_be_a_partition_id(runs, client):
    with pytest.raises(InputError, match=r"^client must be a partition id, such as 0, got "):
        load_model(runs("fedrep"), client)


def test_a_client_may_be_an_integer_of_numpy(runs):
    own, same = (load_model(runs("fedrep"), client).state_dict() for client in (3, np.int64(3)))
    assert all(torch.equal(own[name], same[name]) for name in own)


def test_a_missing_best_model_is_reported(runs):
    with pytest.raises(InputError, match=r"holds no best.safetensors: a run saves it with checkpoint.best$"):
        load_model(runs("fedavg"), best=True)


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ("fedavg", "the clients of .* have no own models"),
        ("fedbabu", "or its clients train new own models for each evaluation"),
    ],
)
def test_a_strategy_without_own_models_is_reported(runs, strategy, line):
    with pytest.raises(InputError, match=line):
        load_model(runs(strategy), 0)


def flipped(path, at):
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("where", [0.001, 0.2, 0.5, 0.8, 0.999])
@pytest.mark.parametrize(("strategy", "name"), [("fedavg", "model"), ("fedrep", "model"), ("fedrep", "clients")])
def test_a_damaged_file_is_never_used(tmp_path, runs, strategy, name, where):
    directory = shutil.copytree(runs(strategy), tmp_path / "run")
    path = directory / f"{name}.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    flipped(path, header + int(where * (path.stat().st_size - header)))
    clients = range(5) if name == "clients" else [None]
    with pytest.raises(InputError, match=f"{path.name} is damaged"):
        _ = [load_model(directory, client) for client in clients]


def test_the_model_of_another_run_or_round_is_rejected(tmp_path, runs):
    directory = shutil.copytree(runs("fedavg"), tmp_path / "run")
    other = conduct(tmp_path / "other", "partitioner=pathological", "seed=1")
    shutil.copy(other / "model.safetensors", directory)
    with pytest.raises(InputError, match=r"is damaged or not of round 4: it differs from model/sha256"):
        load_model(directory)
    mixed = shutil.copytree(runs("fedrep"), tmp_path / "mixed")
    conduct(tmp_path / "longer", "partitioner=pathological", "strategy=fedrep", "federation.num_rounds=2")
    shutil.copy(tmp_path / "longer" / "clients.safetensors", mixed)
    with pytest.raises(InputError, match=r"clients.safetensors does not belong to model.safetensors"):
        load_model(mixed, 0)


def test_edited_rows_are_rejected(tmp_path, runs):
    directory = shutil.copytree(runs("fedavg"), tmp_path / "run")
    rows = (directory / "metrics.jsonl").read_text()
    (directory / "metrics.jsonl").write_text(rows.replace('"round":4,', '"round":4,"x":1,'))
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged, or was edited"):
        load_model(directory)


@pytest.mark.parametrize("strategy", ["fedavg", "fedrep"])
def test_the_best_model_is_compared_with_its_round(tmp_path, strategy):
    column = "personal/loss" if strategy == "fedrep" else "clients/loss"
    options = [f"strategy={strategy}", "optimizer.lr=2.0", f"checkpoint.best={column}", "partitioner=pathological"]
    directory = conduct(tmp_path / "run", *options)
    rows = read_rows(directory)
    best = min(rows[1:], key=lambda row: row[column])
    data = experiment_of(directory).data
    if strategy == "fedrep":
        losses = [evaluate(load_model(directory, i, best=True), *data.validation_samples(i))["loss"] for i in range(5)]
        assert np.mean(losses) == pytest.approx(best["personal/loss_mean"], abs=1e-5)
    else:
        model = load_model(directory, best=True)
        assert evaluate(model, data.test_x, data.test_y)["loss"] == pytest.approx(best["eval/loss"], abs=1e-6)
    flipped(directory / "best.safetensors", -10 % (directory / "best.safetensors").stat().st_size)
    with pytest.raises(InputError, match=r"(best.safetensors is|one of them is) damaged"):
        load_model(directory, 0 if strategy == "fedrep" else None, best=True)


def hostile(directory, source, **model):
    """Copy a run, with another model in its record and a valid hash."""
    shutil.copytree(source, directory)
    record = read_record(directory)
    record["config"]["model"] = {**record["config"]["model"], **model}
    (directory / "run.json").write_text(dump_record(record))
    return directory


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system"},
        {"_target_": "fedresearch.study.reproduce.subprocess.Popen"},
        {"_target_": "fedresearch.models.mlp.torch.hub.load"},
        {"_target_": "torch.hub.load"},
        {"_target_": "torch.nn.Linear"},
        {"_target_": "torchvision.models.resnet18"},
        {"_target_": None},
        {"_target_": ["fedresearch.models.mlp.MLP"]},
        {"widths": {"_target_": "os.mkdir", "path": "ran"}},
        {"widths": [{"_target_": "os.mkdir", "path": "ran"}]},
        {"widths": [[{"a": {"_target_": "os.mkdir", "_args_": ["ran"]}}]]},
        {"widths": ["${oc.env:HOME}"]},
        {"_partial_": True},
        {"_args_": [1]},
    ],
)
def test_a_record_builds_only_a_known_model(tmp_path, monkeypatch, runs, model):
    monkeypatch.chdir(tmp_path)
    directory = hostile(tmp_path / "run", runs("fedavg"), **model)
    with pytest.raises(InputError, match=r"trust=True"):
        load_model(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "model", [{"widths": [10**9]}, {"widths": [5]}, {"widths": ["a"]}, {"widths": None}, {"x": 1}, {"widths": [10**25]}]
)
def test_a_model_that_does_not_fit_the_file_is_rejected_without_memory_for_it(tmp_path, runs, model):
    with pytest.raises(InputError):
        load_model(hostile(tmp_path / "run", runs("fedavg"), **model))


def test_a_users_own_model_is_built_if_trusted(tmp_path, monkeypatch, runs):
    (tmp_path / "trusted_model.py").write_text("from fedresearch.models.mlp import MLP\n\nclass Own(MLP): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    directory = hostile(tmp_path / "run", runs("fedavg"), _target_="trusted_model.Own")
    with pytest.raises(InputError, match=r"trusted_model.Own, which is not from fedresearch.models"):
        load_model(directory)
    assert type(load_model(directory, trust=True)).__name__ == "Own"


def test_every_option_is_a_known_model(compose, tmp_path):
    from fedresearch.experiment.builder import refuse_foreign
    from fedresearch.experiment.model import build_model

    for path in sorted((CONF / "model").glob("[!_]*.yaml")):
        dataset = {"char_lstm": "shakespeare", "cnn_mcmahan": "mnist", "lenet": "mnist"}.get(path.stem, "digits")
        composed, choices = compose(f"model={path.stem}", f"dataset={dataset}", "partitioner=iid")
        refuse_foreign(composed.model)
        with torch.device("meta"):
            state = build_model(composed, choices).state_dict()
        assert {name: tensor.shape for name, tensor in state.items()} == {
            name: tensor.shape for name, tensor in build_model(composed, choices).state_dict().items()
        }


@pytest.mark.parametrize("name", ["model.safetensors", "clients.safetensors"])
def test_loading_does_not_wait_for_what_is_not_a_regular_file(tmp_path, runs, name):
    directory = shutil.copytree(runs("fedrep"), tmp_path / "run")
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(InputError, match="it is not a regular file"):
        load_model(directory, 0)
