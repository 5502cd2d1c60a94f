"""The precision of a model's arithmetic: what is rounded, what is not, and what is refused."""

import copy
import pickle
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fedresearch.config import digest
from fedresearch.errors import InputError
from fedresearch.federation.row_sums import add_weighted
from fedresearch.hardware.threads import be_deterministic, restored_settings
from fedresearch.local.dense import chain_of
from fedresearch.local.forward import Forward, compute_in_bfloat16

SMALL = ["federation.num_supernodes=4", "federation.num_rounds=2", "local.epochs=1", "local.batch_size=20"]


def distance(one, other):
    """Return the norm of the difference of two results' models over that of what the second has learned."""
    before = {name: array.numpy() for name, array in other.experiment.initial_arrays.items()}
    square = [np.square(one.arrays[name] - array).sum() for name, array in other.arrays.items()]
    return np.sqrt(sum(square) / sum(np.square(other.arrays[name] - array).sum() for name, array in before.items()))


def test_a_forward_pass_in_bfloat16_rounds_inputs_weights_and_outputs_of_each_product():
    linear, x = nn.Linear(3, 2), torch.tensor([[1.001, -2.003, 0.1]])
    compute_in_bfloat16(linear)
    rounded = (
        x.bfloat16().double(),
        linear.weight.detach().bfloat16().double(),
        linear.bias.detach().bfloat16().double(),
    )
    expected = torch.nn.functional.linear(*rounded).bfloat16()
    outputs = linear(x)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs.detach(), expected.float())
    outputs.sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    assert torch.equal(linear.weight.grad[0], x[0].bfloat16().float())
    _, features = Forward(linear).features({name: p.detach() for name, p in linear.named_parameters()}, x)
    assert features.dtype == torch.float32


def test_a_model_in_bfloat16_can_be_copied_and_pickled_and_is_no_chain_for_the_kernel():
    linear, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert chain_of(linear, (3,)) is not None
    compute_in_bfloat16(linear)
    assert chain_of(linear, (3,)) is None
    expected = linear(x)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert torch.equal(other(x), expected)
        nn.init.zeros_(other[0].weight)  # its own, not the first one's
        assert not torch.equal(other(x), linear(x))
        assert torch.equal(linear(x), expected)


def test_bfloat16_is_near_in_lanes_and_keeps_the_rest_in_float32(run):
    """Lanes differ as much as bfloat16 does: a sum that is added in another order may be rounded the other way."""
    full = run(*SMALL, "hardware=cpu")
    cpu, lanes = (
        run(*SMALL, "precision=bf16", *options)
        for options in (["hardware=cpu"], ["hardware=batched", "hardware.compile=false"])
    )
    assert 1e-4 < distance(cpu, full) < 0.03
    assert distance(lanes, cpu) < 0.03
    assert {array.dtype for array in cpu.arrays.values()} == {np.dtype("float32")}
    assert len({digest(result.experiment.config) for result in (full, cpu)}) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["precision=fp16"], "precision must be full, bf16 or tf32, got fp16; try precision=bf16"),
        (
            ["precision=bf16", "dtype=float64"],
            "precision=bf16 needs dtype=float32, got dtype=float64; try precision=full",
        ),
        (
            ["precision=tf32"],
            "precision=tf32 needs a GPU on which this process trains, got hardware=auto; try hardware=gpu",
        ),
    ],
)
def test_a_precision_that_makes_no_sense_is_refused(compose, overrides, message):
    with pytest.raises(InputError) as error:
        compose(*overrides)
    assert str(error.value) == message


def test_a_gpus_settings_are_restored():
    backends = torch.backends

    def settings():
        return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()

    before = settings()
    with restored_settings():
        be_deterministic(tf32=True)
        assert settings() == (True, True, True)
        be_deterministic()
        assert settings() == (False, False, True)
    assert settings() == before


def test_the_clients_mean_is_never_in_tf32():
    """Its rows are tensors where they stay on a GPU."""
    allowed = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if "matmul" in func.__name__:
                allowed.append(torch.backends.cuda.matmul.allow_tf32)
            return func(*args, **(kwargs or {}))

    with restored_settings(), Seen():
        be_deterministic(tf32=True)
        mean = add_weighted(None, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0.25, 0.75])
        assert torch.backends.cuda.matmul.allow_tf32
    assert mean.tolist() == [2.5, 3.5]
    assert allowed == [False]


def test_settings_that_did_not_change_are_not_restored(monkeypatch):
    """torch imports its compiler to set this one, which takes a second."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", Mock(side_effect=AssertionError))
    with restored_settings():
        pass
