"""Cohorts that the dense kernel trains: the runs of hardware=batched and hardware=cpu agree up to rounding."""

from dataclasses import dataclass, replace
from unittest.mock import Mock

import pytest
import torch

from fedresearch.data.source import Normalisation
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.rehearsal import rehearse
from fedresearch.federation import update_sums
from fedresearch.federation.dense_clients import DenseClients, chain_of_clients
from fedresearch.hardware import batched
from fedresearch.local.dense import KernelUnavailable
from fedresearch.local.update import Term
from fedresearch.strategies.fedprox import ProximalUpdate
from tests.directories import MLP, compose, conduct, killed, rows_of


def both(directory, *words):
    """Return the rows on both, and the number of rounds that the kernel trained."""
    trained, train = [], DenseClients.train

    def counted(*arguments):
        trained.append(train(*arguments))
        return trained[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenseClients, "train", counted)
        rows = [rows_of(conduct(directory / name, *words, f"hardware={name}")) for name in ("cpu", "batched")]
    return rows, sum(states is not None for states in trained)


def nearly_equal(expected, found):
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            least = 0.02 if "accuracy" in name else 2e-5  # one sample may fall on the other side
            assert found[name] == pytest.approx(value, rel=2e-4, abs=least), name
        elif name != "model/sha256":
            assert found[name] == value, name


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"],
        ["strategy=fedavg", "sampling=proportional", "availability=stragglers"],
        ["strategy=fedprox", "strategy.server.proximal_mu=0.5"],
        ["strategy=fedavg", "optimizer=adam"],
        ["strategy=scaffold"],
        ["strategy=feddyn"],
        ["strategy=fednova", "local.steps=null", "local.epochs=2"],
        ["strategy=qfedavg"],
        ["strategy=multikrum", "federation.fraction_train=1"],
        ["dataset=diabetes", "partitioner=linear", "optimizer.lr=0.01"],
        ["model=logistic", "local.batch_size=0"],
        ["model=cnn_mcmahan", "strategy=scaffold", "federation.num_rounds=1", "federation.fraction_train=0.3"],
    ],
)
def test_the_kernel_and_the_loop_agree(tmp_path, words):
    (cpu, batched), num_rounds = both(tmp_path, *words)
    assert num_rounds == len(cpu) - 1
    for expected, found in zip(cpu, batched, strict=True):
        nearly_equal(expected, found)


@pytest.mark.parametrize(
    ("words", "can"),
    [
        ([], True),
        (["strategy=scaffold", "optimizer.momentum=0.5"], True),
        (["optimizer=adam"], True),
        (["optimizer=adagrad"], False),
        (["dtype=float64"], False),
        (["strategy=fedper"], False),
        (["strategy=moon"], False),
        (["strategy=ditto"], False),
        (["local.keep_optimizer_state=true"], False),
        (["model=cnn_mcmahan"], True),
        (["model=resnet18"], False),
    ],
)
def test_what_it_cannot_train_trains_without_it(words, can):
    config, choices = compose("dataset=digits", *words)
    assert (chain_of_clients(Experiment(config, choices).client_app) is not None) is can


def test_terms_that_are_not_the_same_train_without_it(tmp_path, monkeypatch):
    """A client's own weight of the proximal term."""
    monkeypatch.setattr("fedresearch.local.stacked.compile_code", lambda function, _: function)  # which takes seconds
    begin = ProximalUpdate.begin
    monkeypatch.setattr(
        ProximalUpdate, "begin", lambda update, start: {**begin(update, start), "mu": float(start.partition_id)}
    )
    (cpu, batched), num_rounds = both(tmp_path, "strategy=fedprox", "federation.num_rounds=1")
    assert num_rounds == 0
    nearly_equal(cpu[-1], batched[-1])


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "feddyn", "fednova"])
def test_what_the_kernel_trains_is_not_tried_out_by_vmap(monkeypatch, strategy):
    """Which imports PyTorch's compiler, in a fork of each run."""
    experiment = Experiment(*compose(*MLP, f"strategy={strategy}", "hardware=batched", "tracker=none"))
    assert experiment.grid
    monkeypatch.setattr(batched, "StackedTrainer", Mock(side_effect=ValueError("by vmap")))
    rehearse(experiment)
    monkeypatch.setattr(type(experiment.client_app.update), "begin", lambda update, start: {})
    monkeypatch.setattr(type(experiment.client_app.update), "term", lambda update, fixed: Term({"other": None}))
    experiment = Experiment(*compose(*MLP, f"strategy={strategy}", "hardware=batched", "tracker=none"))
    with pytest.raises(InputError, match="by vmap"):
        rehearse(experiment)


def shift_of_some(fixed):
    """Return the anchor as a shift of the clients of odd partitions, its names in another order."""
    return Term(dict(reversed(fixed["anchor"].items())) if fixed["odd"] else {})


@pytest.mark.parametrize("term", [shift_of_some, lambda fixed: Term(mu=5.0)], ids=["some", "no origin"])
def test_terms_without_a_part_are_those_of_the_loop(tmp_path, monkeypatch, term):
    monkeypatch.setattr(
        ProximalUpdate, "begin", lambda update, start: {"anchor": start.anchor, "odd": start.partition_id % 2}
    )
    monkeypatch.setattr(ProximalUpdate, "term", lambda update, fixed: term(fixed))
    words = "strategy=fedprox", "federation.num_rounds=1", "federation.fraction_train=1"
    (cpu, batched), num_rounds = both(tmp_path, *words)
    assert num_rounds == 1
    nearly_equal(cpu[-1], batched[-1])


@dataclass(frozen=True)
class Rooted(Normalisation):
    def __call__(self, pixels):
        return super().__call__(pixels).sqrt()


@pytest.mark.parametrize(("kind", "can"), [(Normalisation, True), (Rooted, False)])
def test_pixels_are_scaled_and_nothing_else(kind, can):
    clients = Experiment(*compose("model=logistic")).client_app
    pixels, zero, one = (clients.data.x * 16).byte(), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    clients.data = replace(clients.data, x=pixels, normalise=kind(zero, one))
    assert bool(chain_of_clients(clients)) is can


@pytest.mark.parametrize("most_together", [2**26, 1000], ids=["kept", "folded"])
def test_calls_of_few_clients_give_the_same_bits(run, monkeypatch, most_together):
    """Of 10 clients; when they are folded, in blocks of four rows."""
    monkeypatch.setattr(update_sums, "_MOST_TOGETHER", most_together)
    words = *MLP, "hardware=batched", "federation.num_rounds=2", "federation.fraction_train=1"
    expected = run(*words).numbers()
    monkeypatch.setattr(batched, "_MOST_AT_ONCE", 3)
    assert run(*words).numbers() == expected


def test_a_resume_has_the_same_bits(tmp_path):
    words = "strategy=scaffold", "hardware=batched"
    whole = conduct(tmp_path / "whole", *words)
    resumed = killed(whole, tmp_path / "resumed", checkpoint=2)
    conduct(resumed, *words)
    assert rows_of(resumed) == rows_of(whole)


def test_without_a_compiler_the_clients_train_without_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fedresearch.local.stacked.compile_code", lambda function, _: function)
    monkeypatch.setattr("fedresearch.hardware.batched.DenseClients", Mock(side_effect=KernelUnavailable("no compiler")))
    conduct(tmp_path / "run", "hardware=batched", "federation.num_rounds=1")
    assert "the clients train without the dense kernel, which is faster: no compiler" in caplog.text
