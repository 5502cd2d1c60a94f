"""Devices and memory formats. Where there is no GPU, torch's meta device stands for one: neither mixes with the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.model import fastest_memory_format
from fedresearch.experiment.preparation import prepare
from fedresearch.local.train import LocalTrainer, LocalWork, Task

HAS_GPU = torch.cuda.is_available()
SMALL = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=1"]
STRATEGIES = ["fedavg", "fedprox", "scaffold", "fednova", "feddyn", "moon", "fedrep", "ditto"]


def on_meta(compose, strategy):
    """Return the experiment's ClientApp with all that it holds on the meta device, and its first client's task."""
    experiment = Experiment(*compose(f"strategy={strategy}", "tracker=none", *SMALL))
    initial = experiment.initial_arrays
    clients = experiment.client_app.to("meta")
    x, y = clients.data.train_samples(0)
    start = {name: tensor.to("meta") for name, tensor in experiment.state_dict(initial).items()}
    config = {"lr": 0.1, "num-clients": 6.0, "proximal-mu": 0.1, "alpha": 0.1}
    received = {"control-variate": {name: torch.zeros_like(tensor) for name, tensor in start.items()}}
    return clients, Task(start, x, y, clients.update, clients.stages, config, lambda _: 0, received=received)


@pytest.fixture
def values_known(monkeypatch):
    """Let the numbers of a device without values be zero."""
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: [0.0] * len(self))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clients_training_stays_on_its_device(compose, strategy, values_known, monkeypatch):
    monkeypatch.setattr("fedresearch.local.train.drift", lambda *_: 1.0)
    clients, task = on_meta(compose, strategy)
    trained = LocalTrainer(clients.model, clients.optimizer, LocalWork(None, 2, 10))(task)
    assert trained.num_steps >= 2
    for tensor in (*trained.state.values(), *(t for group in trained.end.kept.values() for t in group.values())):
        assert tensor.device.type == "meta"


def test_what_mixes_devices_is_refused_on_the_stand_in(compose, values_known):
    clients, task = on_meta(compose, "fedavg")
    elsewhere = task._replace(x=torch.zeros(task.x.shape))
    with pytest.raises(RuntimeError, match="device"):
        LocalTrainer(clients.model, clients.optimizer, LocalWork(None, 2, 10))(elsewhere)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.parametrize("hardware", [["hardware=gpu"], ["hardware=batched", "hardware.device=cuda"]], ids=" ".join)
def test_a_gpu_that_is_not_there_is_reported_in_a_line(compose, hardware):
    experiment = Experiment(*compose("tracker=none", *hardware))
    with pytest.raises(
        InputError, match=r"hardware.device=cuda needs a GPU that torch can use, got 0 with torch .*; try"
    ):
        prepare(experiment)


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_gives_the_same_up_to_rounding_and_itself_to_the_bit(run, strategy):
    options = [*SMALL, f"strategy={strategy}", "dtype=float64"]
    expected, one, again = run(*options), run(*options, "hardware=gpu"), run(*options, "hardware=gpu")
    assert one.numbers() == again.numbers()
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(one.arrays[name], array, rtol=0, atol=1e-10)


def test_the_device_counts_in_the_digest(compose):
    from fedresearch.config import digest

    def digest_of(*overrides):
        return digest(compose(*overrides)[0])

    assert digest_of() == digest_of("hardware=workers") == digest_of("hardware=ray") == digest_of("hardware=superlink")
    gpu = digest_of("hardware=gpu")
    assert (
        gpu == digest_of("hardware=gpu", "hardware.device=cuda:1") == digest_of("hardware=ray", "hardware.num_gpus=1")
    )
    assert len({digest_of(), gpu, digest_of("hardware=workers", "hardware.threads=2")}) == 3
    assert digest_of("memory_format=channels_last") != digest_of()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=cnn_mcmahan"], True),
        (["model=cnn_mcmahan", "memory_format=contiguous"], False),
        (["model=cnn_mcmahan", "dtype=float64"], False),
        (["model=resnet18"], False),
        (["model=resnet18", "memory_format=channels_last"], True),
    ],
    ids=str,
)
def test_models_are_laid_out_as_they_declare(compose, overrides, expected):
    experiment = Experiment(*compose("tracker=none", *overrides))
    convolution = next(p for p in experiment.model.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last) == expected
    assert fastest_memory_format(experiment.model, torch.device("cuda")) == torch.preserve_format
    undeclared = nn.Conv2d(1, 1, 1)  # it may call view, which fails on another format
    assert fastest_memory_format(undeclared, torch.device("cpu")) == torch.preserve_format


@pytest.mark.slow
def test_channels_last_is_the_same_up_to_rounding(run):
    """In float64; what is sent has the usual layout."""
    options = ["dtype=float64", "model=cnn_mcmahan", "federation.num_rounds=1", "federation.fraction_evaluate=0"]
    options += ["partitioner=iid", "federation.num_supernodes=20", "federation.fraction_train=0.2", "local.epochs=1"]
    usual, last = run(*options), run(*options, "memory_format=channels_last")
    convolution = next(p for p in last.experiment.model.parameters() if p.dim() == 4)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert last.experiment.data.x.is_contiguous(memory_format=torch.channels_last)
    for name, array in usual.arrays.items():
        np.testing.assert_allclose(last.arrays[name], array, rtol=0, atol=1e-11)
        assert last.arrays[name].flags.c_contiguous
