"""hardware=auto: the rule by hand, the operations of known models, and the same bits as the option that it chooses."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.hardware import auto
from fedresearch.runs.record import read_record
from tests.directories import conduct, rows_of


def flops_of(model, x):
    clients = SimpleNamespace(model=model, data=SimpleNamespace(x=x), inputs=SimpleNamespace(prepare=lambda x: x))
    return auto.forward_flops(clients)


def test_a_parameter_counts_once_for_each_position():
    assert flops_of(nn.Linear(4, 3), torch.zeros(2, 4)) == 2 * (4 * 3 + 3)
    assert flops_of(nn.Linear(4, 3), torch.zeros(2, 7, 4)) == 2 * (4 * 3 + 3) * 7
    assert flops_of(nn.Conv2d(3, 5, 3), torch.zeros(2, 3, 8, 8)) == 2 * (3 * 5 * 9 + 5) * 6 * 6
    lstm = nn.LSTM(4, 6, batch_first=True)
    assert flops_of(nn.Sequential(nn.Embedding(9, 4), lstm), torch.zeros(2, 7, dtype=int)) == (
        2 * (4 * 6 * 4 + 4 * 6 * 6 + 2 * 4 * 6) * 7
    )


def test_counting_changes_neither_the_model_nor_the_generators():
    model, state = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()), torch.get_rng_state()
    flops_of(model, torch.rand(2, 4, generator=torch.Generator()))
    assert model.training
    assert model[0].num_batches_tracked == 0
    assert not model[0]._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)


def choice(compose, monkeypatch, cores, *overrides):
    monkeypatch.setattr(auto, "num_cores", lambda: cores)
    grid = Experiment(*compose("hardware=auto", *overrides)).grid
    return auto.choose(grid._clients, grid._num_rounds, grid._cohort_size)


def test_the_rule(compose, monkeypatch):
    option, reason, seconds = choice(compose, monkeypatch, 64)
    assert option == "cpu"
    assert seconds < 10
    assert reason.endswith("and workers would save too little")
    # 1,437 samples, a fifth of them held back, on 10 clients of which 5 train: 12 batches of 10 an epoch. 64-200-10.
    option, reason, seconds = choice(compose, monkeypatch, 2, "federation.num_rounds=2000")
    epochs, flops = 2000 * 5 * 5, 3 * 2 * (64 * 200 + 200 + 200 * 10 + 10)
    assert seconds == pytest.approx(epochs * (12 * 150e-6 + 115 * flops / 40e9), rel=0.05)
    assert option == "workers"
    assert reason.endswith("and 2 clients can train at once")
    long = "federation.num_rounds=2000"
    assert choice(compose, monkeypatch, 1, long)[:2] == ("cpu", "this run may use one core")
    alone = choice(compose, monkeypatch, 2, long, "federation.fraction_train=0.1")
    assert alone[:2] == ("cpu", "one client trains in a round")
    pooled = choice(compose, monkeypatch, 2, long, "strategy=centralised")
    assert pooled[:2] == ("cpu", "one client trains in a round")


def test_it_runs_as_what_it_chose_and_the_record_has_it(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "fedresearch")
    options = ("strategy=scaffold", "hardware=auto")
    on_cpu = conduct(tmp_path / "cpu", *options)
    assert read_record(on_cpu)["hardware"] == "cpu"
    assert "hardware" not in caplog.text  # a short run
    monkeypatch.setattr(auto, "_WORTHWHILE_S", -1e9)
    monkeypatch.setattr(auto, "_SHORT_S", 0)
    monkeypatch.setattr(auto, "num_cores", lambda: 2)
    on_workers = conduct(tmp_path / "workers", *options)
    record = read_record(on_workers)
    assert (record["hardware"], record["choices"]["hardware"]) == ("workers", "auto")
    assert record["digest"] == read_record(on_cpu)["digest"]
    assert "hardware=auto: workers, since training takes about 1 s on one core, and 2 clients" in caplog.text
    assert "hardware=batched would be faster" in caplog.text
    named = conduct(tmp_path / "named", *options, "hardware=cpu")
    assert rows_of(on_cpu) == rows_of(on_workers) == rows_of(named)
    assert read_record(named)["hardware"] == "cpu"


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_gradients_are_called_or_refused(compose, monkeypatch, register):
    """Neither pickling nor a function of the parameters keeps them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    getattr(model[1].weight, register)(lambda each: None)

    def grid(hardware):
        experiment = Experiment(*compose(f"hardware={hardware}", "federation.num_rounds=9999", "local.epochs=99"))
        experiment.model = model
        return experiment.grid

    for hardware in ("workers", "batched"):
        with pytest.raises(
            InputError, match=r"^the gradient of the model's 1.weight has a hook, and copies of the model"
        ):
            grid(hardware)
    monkeypatch.setattr(auto, "num_cores", lambda: 2)
    chosen = grid("auto")
    assert auto.choose(chosen._clients, 9999, 10)[0] == "cpu"
    model[1].weight._backward_hooks = model[1].weight._post_accumulate_grad_hooks = None
    assert auto.choose(chosen._clients, 9999, 10)[0] == "workers"
