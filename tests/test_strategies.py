"""Strategies: what is FedAvg in a special case, what one cohort shares with its clients, what keeps its dtype."""

import functools

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from fedresearch.local.forward import Forward
from fedresearch.local.train import LocalTrainer, LocalWork, Task, drift, starting
from fedresearch.local.update import LocalUpdate
from fedresearch.models.mlp import MLP
from fedresearch.strategies.ditto import DittoUpdate
from fedresearch.strategies.fedbabu import BodyOnly
from fedresearch.strategies.feddyn import DynamicUpdate
from fedresearch.strategies.fednova import NormalizedUpdate
from fedresearch.strategies.fedprox import ProximalUpdate
from fedresearch.strategies.fedrep import HeadThenBody
from fedresearch.strategies.moon import ContrastiveUpdate
from fedresearch.strategies.qfedavg import ReportingUpdate
from fedresearch.strategies.scaffold import ScaffoldUpdate

UPDATES = {
    "FedAvg": LocalUpdate(),
    "FedProx": ProximalUpdate(),
    "SCAFFOLD I": ScaffoldUpdate("I"),
    "SCAFFOLD II": ScaffoldUpdate("II"),
    "FedNova": NormalizedUpdate(),
    "FedDyn": DynamicUpdate(),
    "q-FedAvg": ReportingUpdate(),
    "MOON": ContrastiveUpdate(mu=2.0, temperature=0.5),
    "FedRep": HeadThenBody(head=None, head_epochs=2),
    "FedBABU": BodyOnly(head=None, finetune_epochs=1),
    "Ditto's own model": DittoUpdate(lam=0.4, personal_epochs=None).own_model,
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
    config = {"lr": LR, "proximal-mu": MU, "alpha": 0.3}
    received = {"control-variate": {key: random(*t.shape) for key, t in initial.items()}}
    groups = ("control-variate", "linear-term", "previous")
    kept = [{group: {key: random(*t.shape) for key, t in initial.items()} for group in groups} for _ in range(3)]
    optimizer = functools.partial(torch.optim.SGD, lr=LR)

    alone, ends = [], []
    for i in range(3):
        task = Task(
            initial, x[i], y[i], update, update.stages(model), config, lambda _: 0, received=received, kept=kept[i]
        )
        ends.append(LocalTrainer(model, torch.optim.SGD, LocalWork(None, STEPS, 0))(task))
        alone.append({key: tensor.detach().clone() for key, tensor in model.named_parameters()})

    # begin and end are called once a client, objective and correct in every step: these run for all clients at once.
    model.load_state_dict(initial)
    forward = Forward(model)
    starts = [
        starting(
            Task(initial, x[i], y[i], update, (), config, lambda _: 0, received=received, kept=kept[i]), model, initial
        )
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
        for one, other in ((end.sent, ends[i].end.sent), (end.kept, ends[i].end.kept)):
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
    for state in result.experiment.grid.states.values():
        for record in state.array_records.values():
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


def test_moon_by_its_equation(run):
    """Two rounds of two steps each on everything that two clients hold, with equation 3 written out."""
    mu, temperature, lr = 3.0, 0.4, 0.2
    result = run(
        "strategy=moon",
        f"strategy.client.mu={mu}",
        f"strategy.client.temperature={temperature}",
        "partitioner=linear",
        "federation.num_supernodes=2",
        "federation.num_rounds=2",
        "federation.fraction_train=1",
        "model.widths=[32]",
        "local.epochs=null",
        "local.steps=2",
        "local.batch_size=0",
        f"optimizer.lr={lr}",
        "dtype=float64",
    )
    experiment = result.experiment
    w = {name: torch.from_numpy(array.numpy()) for name, array in experiment.initial_arrays.items()}
    first, last = sorted({name.rpartition(".")[0] for name in w})

    def features(params, x):
        return (x.flatten(1) @ params[f"{first}.weight"].T + params[f"{first}.bias"]).relu()

    def cosine(a, b):
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    samples = [experiment.data.train_samples(i) for i in range(2)]
    sizes = [len(y) for _, y in samples]
    assert sizes[0] != sizes[1]
    previous = [w, w]
    for _ in range(2):
        models = []
        for i, (x, y) in enumerate(samples):
            params = w
            for _ in range(2):
                leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
                z = features(leaves, x)
                to_global = (cosine(z, features(w, x)) / temperature).exp()
                to_previous = (cosine(z, features(previous[i], x)) / temperature).exp()
                contrastive = -(to_global / (to_global + to_previous)).log().mean()
                outputs = z @ leaves[f"{last}.weight"].T + leaves[f"{last}.bias"]
                (torch.nn.functional.cross_entropy(outputs, y) + mu * contrastive).backward()
                params = {name: leaf.detach() - lr * leaf.grad for name, leaf in leaves.items()}
            models.append(params)
            previous[i] = params
        w = {name: sum(n * model[name] for n, model in zip(sizes, models, strict=True)) / sum(sizes) for name in w}
    for name, array in result.arrays.items():
        np.testing.assert_allclose(array, w[name].numpy(), rtol=0, atol=1e-10)


MODELS = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.b(self.a(x.flatten(1)).relu()).relu())

class Frozen(Tied):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.a.requires_grad_(False)
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Return a folder with a model of tied weights, and one that has a frozen layer besides."""
    (tmp_path / "model").mkdir()
    (tmp_path / "odd_models.py").write_text(MODELS)
    for name in ("Tied", "Frozen"):
        (tmp_path / "model" / f"{name.lower()}.yaml").write_text(f"_target_: odd_models.{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam_reddi", "feddyn", "krum", "scaffold", "fednova"])
def test_tied_weights_stay_tied_and_move(run, models, strategy):
    options = ["model=tied", f"strategy={strategy}", "federation.num_rounds=2", "local.epochs=1", "dtype=float64"]
    result = run(*options, config_dir=models)
    np.testing.assert_allclose(result.arrays["a.weight"], result.arrays["b.weight"], rtol=0, atol=1e-12)
    initial = result.experiment.initial_arrays["a.weight"].numpy()
    assert np.abs(result.arrays["a.weight"] - initial).max() > 1e-3


@pytest.mark.parametrize("hardware", ["cpu", "batched"])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedrep", "fedbabu", "ditto"])
def test_frozen_parameters_do_not_move(run, models, strategy, hardware):
    options = ["model=frozen", f"strategy={strategy}", "federation.num_rounds=2", "local.epochs=1"]
    options += ["hardware=batched", "hardware.compile=false"] if hardware == "batched" else []
    result = run(*options, config_dir=models)
    initial = result.experiment.initial_arrays
    # The mean of equal numbers may differ in the last bit.
    np.testing.assert_allclose(result.arrays["a.weight"], initial["a.weight"].numpy(), rtol=0, atol=1e-7)
    assert np.abs(result.arrays["b.bias"] - initial["b.bias"].numpy()).max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["strategy=scaffold", "optimizer=adam"],
            "needs an optimizer that is linear in its gradients; try optimizer=s",
        ),
        (["strategy=fednova", "optimizer=adagrad"], "needs an optimizer that is linear in its gradients; try optimi"),
        (["strategy=moon", "model=logistic"], "strategy=moon: the model has one layer, so that its features are its"),
        (["strategy=fedper", "model=logistic"], "strategy=fedper: the head is the whole model, so that nothing is sh"),
        (["strategy.client._target_=builtins.dict"], "strategy.client must make a LocalUpdate (fedresearch), got a"),
        (["strategy.server._target_=builtins.dict"], "strategy.server must make a Strategy (flwr), got a dict"),
        (["+sampling.seed=1"], "sampling=uniform: seed cannot be set, the run gives it; remove seed"),
        (["+optimizer.schedule.lr=1"], "schedule=constant: lr cannot be set, the run gives it; remove lr"),
        (
            ["schedule=step", "optimizer.schedule.step_size=1", "optimizer.schedule.gamma=1e-200"],
            "schedule=step: the learning rate must be > 0 and below 1e38, got 0.0 in round 3",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_the_run(compose, overrides, said):
    from fedresearch.errors import InputError
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    experiment = Experiment(*compose(*overrides, "tracker=none"))
    with pytest.raises(InputError) as error:
        prepare(experiment)
    assert said in str(error.value)


def test_clients_know_how_many_hold_data(compose):
    from fedresearch.experiment.experiment import Experiment

    options = ["partitioner.alpha=0.02", "partitioner.min_partition_size=0", "federation.num_supernodes=40"]
    experiment = Experiment(*compose(*options, "tracker=none"))
    holding = sum(len(rows) > 0 for rows in experiment.data.train)
    assert 0 < holding < 40
    assert experiment.client_config(1)["num-clients"] == holding
