"""Strategies: what is FedAvg in a special case, what one cohort shares with its clients, what keeps its dtype."""

import functools

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from fedresearch.local.forward import Forward
from fedresearch.local.train import Schedule, Task, drift, mean_gradient, train
from fedresearch.local.update import LocalUpdate, Start
from fedresearch.models.mlp import MLP
from fedresearch.strategies.ditto import DittoUpdate
from fedresearch.strategies.fedbabu import BodyOnly
from fedresearch.strategies.feddyn import DynamicUpdate
from fedresearch.strategies.fednova import NormalizedUpdate
from fedresearch.strategies.fedprox import ProximalUpdate
from fedresearch.strategies.fedrep import HeadThenBody
from fedresearch.strategies.moon import ContrastiveUpdate
from fedresearch.strategies.scaffold import ScaffoldUpdate

UPDATES = {
    "FedAvg": LocalUpdate(),
    "FedProx": ProximalUpdate(),
    "SCAFFOLD I": ScaffoldUpdate("I"),
    "SCAFFOLD II": ScaffoldUpdate("II"),
    "FedNova": NormalizedUpdate(0.7),
    "FedDyn": DynamicUpdate(0.3),
    "MOON": ContrastiveUpdate(mu=2.0, temperature=0.5),
    "FedRep": HeadThenBody(head=None, head_epochs=2),
    "FedBABU": BodyOnly(head=None, finetune_epochs=1),
    "Ditto's own model": DittoUpdate(lam=0.4, personal_epochs=None).beside,
}
LR, MU, STEPS = 0.1, 0.7, 4


@pytest.mark.parametrize("name", UPDATES)
def test_a_cohorts_round_is_that_of_its_clients(name):
    """Three clients' steps in one call of vmap each, and their whole rounds one after another in ``train``."""
    update = UPDATES[name]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = MLP((4,), 3, widths=[5]).double()
    initial = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    x, y = random(3, 6, 4), torch.randint(0, 3, (3, 6), generator=generator)
    config = {"lr": LR, "proximal-mu": MU}
    received = {"control-variate": {key: random(*t.shape) for key, t in initial.items()}}
    groups = ("control-variate", "linear-term", "previous")
    kept = [{group: {key: random(*t.shape) for key, t in initial.items()} for group in groups} for _ in range(3)]
    optimizer = functools.partial(torch.optim.SGD, lr=LR)

    alone, ends = [], []
    for i in range(3):
        task = Task(initial, x[i], y[i], update, update.stages(model), config, 0, 0, received=received, kept=kept[i])
        ends.append(train(model, task, optimizer=torch.optim.SGD, schedule=Schedule(None, STEPS, 0)))
        alone.append({key: tensor.detach().clone() for key, tensor in model.named_parameters()})

    # begin and end are called once a client, objective and correct in every step: these run for all clients at once.
    model.load_state_dict(initial)
    forward = Forward(model)
    starts = [
        Start(initial, config, received, kept[i], functools.partial(mean_gradient, model, x=x[i], y=y[i]))
        for i in range(3)
    ]
    fixed = [update.begin(start) for start in starts]
    stacked = tree_map(lambda *leaves: torch.stack(leaves) if torch.is_tensor(leaves[0]) else leaves[0], *fixed)
    axes = tree_map(lambda leaf: 0 if torch.is_tensor(leaf) else None, stacked)
    params = {key: torch.stack([tensor] * 3) for key, tensor in initial.items()}

    def step(trained, params, x, y, fixed):
        gradients = grad(lambda moving: update.objective(forward, params | moving, x, y, fixed).mean())(trained)
        corrected = update.correct(gradients, trained, fixed)
        return {key: trained[key] - LR * gradient for key, gradient in corrected.items()}

    num_steps = 0
    for stage in update.stages(model):
        for _ in range(stage.epochs or STEPS):
            trained = {key: params[key] for key in params if key in stage.trained}
            params |= vmap(step, in_dims=(0, 0, 0, 0, axes))(trained, params, x, y, stacked)
            num_steps += 1
    for i in range(3):
        for key, tensor in alone[i].items():
            torch.testing.assert_close(params[key][i], tensor, rtol=0, atol=1e-12)
        ours = {key: tensor[i] for key, tensor in params.items()}
        end = update.end(ours, fixed[i], lambda mu: drift(optimizer, num_steps, mu))
        assert num_steps == ends[i].num_steps
        for one, other in ((end.sent, ends[i].sent), (end.kept, ends[i].kept)):
            assert one.keys() == other.keys()
            for a, b in zip(tree_leaves(dict(one)), tree_leaves(dict(other)), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedavgm", "strategy.server.server_momentum=0.0"],
        ["strategy=fedprox", "strategy.server.proximal_mu=0"],
        ["strategy=fednova", "local.epochs=null", "local.steps=3"],
        ["strategy=moon", "strategy.client.mu=0"],
        ["strategy=fedrep", "strategy.client.head=[]"],
        ["strategy=fedper", "strategy.client.head=[]"],
        ["strategy=ditto"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_what_is_fedavg_bit_for_bit(run, overrides):
    local = [override for override in overrides if override.startswith("local.")]
    fedavg, other = run("federation.num_rounds=3", *local), run("federation.num_rounds=3", *overrides)
    assert [row["model/sha256"] for row in other.rows] == [row["model/sha256"] for row in fedavg.rows]


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_is_fedavg_while_its_variates_are_zero(run, option):
    """In round 1 bit for bit; in round 2 they are not zero any more."""
    fedavg = run("federation.num_rounds=2")
    scaffold = run("federation.num_rounds=2", "strategy=scaffold", f"strategy.client.option={option}")
    ours, theirs = ([row["model/sha256"] for row in result.rows] for result in (scaffold, fedavg))
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]


def test_q_fedavg_without_q_is_the_plain_mean_as_scaled(run):
    """Li et al. 2020, Algorithm 2 with q = 0: Delta_k = L (w - w_k) and h_k = L, so w+ = w - mean_k (w - w_k)."""
    options = ["federation.num_rounds=2", "local.epochs=1", "dtype=float64"]
    mean = run("strategy=fedavg", "strategy.weighted_by=uniform", *options)
    qfedavg = run("strategy=qfedavg", "strategy.server.q=0", *options)
    for name, array in mean.arrays.items():
        np.testing.assert_allclose(qfedavg.arrays[name], array, rtol=0, atol=1e-10)


def test_trimming_nothing_is_the_plain_mean(run):
    options = ["federation.num_rounds=2", "local.epochs=1", "dtype=float64"]
    mean = run("strategy=fedavg", "strategy.weighted_by=uniform", *options)
    trimmed = run("strategy=fedtrimmedavg", "strategy.server.beta=0", *options)
    for name, array in mean.arrays.items():
        np.testing.assert_allclose(trimmed.arrays[name], array, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "strategy", ["fedadam", "fedadam_reddi", "fedmedian", "krum", "qfedavg", "fedavgm", "scaffold", "fednova", "feddyn"]
)
def test_float32_stays_float32(run, strategy):
    result = run(f"strategy={strategy}", "federation.num_rounds=2", "local.epochs=1")
    assert {array.dtype.name for array in result.arrays.values()} == {"float32"}
    assert all(np.isfinite(row["eval/loss"]) for row in result.rows)
    for context in result.experiment.grid._contexts.values():
        for record in context.state.array_records.values():
            assert {array.dtype for array in record.values()} == {"float32"}


def test_a_forward_pass_with_other_parameters_leaves_the_statistics_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    forward = Forward(model)
    x = torch.randn(5, 3)
    others = {name: tensor.detach() + 1 for name, tensor in forward.params.items()}
    outputs, features = forward.features(others, x)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    torch.testing.assert_close(outputs, features @ others["2.weight"].T + others["2.bias"])
    expected = functional_call(model, others, (x,))  # moves them
    torch.testing.assert_close(outputs, expected)
    assert not torch.equal(model[1].running_mean, torch.zeros(4))
