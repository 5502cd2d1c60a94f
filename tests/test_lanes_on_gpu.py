"""Lanes on a GPU, without one: on torch's device ``meta``, whose tensors have shapes and no values.

torch rejects what must wait for a value there: ``item``, ``nonzero``, a truth value, a mask as an index, a copy to the
CPU. What reads tensors of two devices is counted. Adam is left out: it counts its steps elsewhere on a GPU.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fedresearch.local.forward import Forward
from fedresearch.local.inputs import Inputs
from fedresearch.local.lanes import Column, Lanes
from fedresearch.local.stacked import _in_lanes, _leaves, _rows
from fedresearch.local.steps import Steps
from fedresearch.local.train import Task, starting
from fedresearch.local.update import LocalUpdate
from fedresearch.strategies.fedprox import ProximalUpdate
from fedresearch.strategies.scaffold import ScaffoldUpdate

GPU = torch.device("meta")
LENGTHS = (4, 2, 1)  # steps of the clients, of which two train at once


class Mixed(TorchDispatchMode):
    """Counts operations that read a tensor of another device than that of their result."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            {part.device for part in tree_flatten(each)[0] if isinstance(part, torch.Tensor)} for each in (args, result)
        )
        self.count += bool(given and made and given != made)
        return result


def train(update, momentum=0.0, lanes_on=GPU):
    """Train three clients in two lanes; return the number of mixed operations, and the devices of the results."""
    model = nn.Linear(4, 3, device=GPU)
    forward = Forward(model)
    start = {name: tensor.detach() for name, tensor in forward.params.items()}
    x, y = torch.zeros(30, 4, device=GPU), torch.zeros(30, dtype=torch.long, device=GPU)
    received = {"control-variate": start}
    config = {"lr": 0.1, "proximal-mu": 0.1}
    tasks = [Task(start, x, y, update, (), config, lambda _: 0, received=received, kept=received) for _ in LENGTHS]
    fixed = [update.begin(starting(task, model, start)) for task in tasks]
    like = start["weight"]
    leaves, spec = _leaves(fixed, like)
    lanes = Lanes(LENGTHS, 2, torch.device(lanes_on))
    starts = [0, 10, 20]
    rows = [_rows([slice(None)] * steps, 10, first, 10) for steps, first in zip(LENGTHS, starts, strict=True)]
    index, is_first, _ = _in_lanes(lanes, starts, rows, [[], [], []])
    batches = index.to(GPU), is_first.to(GPU), []
    steps = Steps(
        update,
        Inputs(),
        forward,
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=momentum),
        [*start],
        spec,
        lambda code, _: code,
    )
    shared = torch.tensor(0.1).to(GPU), x, y
    params = {name: Column([tensor] * len(LENGTHS), like) for name, tensor in start.items()}
    with Mixed() as mixed:
        trained, total = steps(params, leaves, lanes, batches, shared)
    return mixed.count, {tensor.device for tensor in (*trained.values(), total)}


@pytest.mark.parametrize(
    ("update", "momentum"), [(LocalUpdate(), 0.0), (ProximalUpdate(), 0.9), (ScaffoldUpdate(option=2), 0.0)]
)
def test_no_step_waits_for_the_gpu_or_copies_from_it_or_to_it(update, momentum, monkeypatch):
    monkeypatch.setattr(Steps, "_equals_no_state", lambda *_: True)  # once for all steps, by values
    assert train(update, momentum) == (0, {GPU})


def test_an_index_on_the_cpu_is_noticed():
    with pytest.raises(RuntimeError, match="same device"):
        train(LocalUpdate(), lanes_on="cpu")
