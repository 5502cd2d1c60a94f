"""What clients keep to themselves: heads, normalisation, models of their own; and the runs without a federation."""

import copy
import textwrap

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.experiment.selection import check_selection
from fedresearch.federation.records import values
from fedresearch.local.train import LocalTrainer, LocalWork, Task
from fedresearch.local.update import LocalUpdate, Stage
from fedresearch.models.mlp import MLP
from fedresearch.runs.record import read_record
from fedresearch.seeding import Seeds
from fedresearch.strategies.fedbabu import BodyOnly
from fedresearch.strategies.fedrep import HeadThenBody
from tests.directories import conduct, rows_of

BODY, HEAD = ["layers.1.weight", "layers.1.bias"], ["layers.3.weight", "layers.3.bias"]
SMALL = [
    "model.widths=[8]",
    "federation.num_supernodes=4",
    "federation.fraction_train=1",
    "federation.num_rounds=2",
    "local.epochs=1",
]
SHARED = {  # what a client exchanges of the model, and whether it has one of its own
    "fedavg": (BODY + HEAD, False),
    "scaffold": (BODY + HEAD, False),
    "centralised": (BODY + HEAD, False),
    "ditto": (BODY + HEAD, True),
    "fedper": (BODY, True),
    "fedrep": (BODY, True),
    "fedbabu": (BODY, True),
    "local_only": ([], True),
}
DIABETES = [
    "dataset=diabetes",
    "model=logistic",
    "partitioner=linear",
    "dtype=float64",
    "federation.num_supernodes=4",
    "federation.fraction_train=1",
    "local.batch_size=0",
    "local.epochs=null",
    "optimizer.lr=0.05",
]


def state_of(experiment, partition_id):
    """Return what a client keeps between rounds."""
    return experiment.grid.states.get(partition_id + 2, {})


def initial_state(experiment):
    return experiment.state_dict(experiment.initial_arrays)


def stacked(arrays):
    """Return a linear model's weights and bias as one vector."""
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.append(weight.ravel(), bias)


def problem(samples):
    """Return a client's design matrix with a column of ones, and its targets."""
    x, y = (array.numpy() for array in samples)
    return np.column_stack([x, np.ones(len(x))]), y[:, 0]


def descend(w, design, y, num_steps, eta=0.05):
    for _ in range(num_steps):
        w = w - eta * 2 / len(y) * design.T @ (design @ w - y)
    return w


def accuracy(model, samples):
    x, y = samples
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("strategy", SHARED)
def test_what_is_exchanged_and_whose_models_are_measured(run, strategy):
    shared, has_own = SHARED[strategy]
    result = run(*SMALL, f"strategy={strategy}", "federation.num_rounds=1")
    assert list(result.experiment.initial_arrays) == shared
    assert list(result.arrays) == shared
    for row in result.rows:
        assert {key for key in row if key.startswith("personal/")} == (
            {"personal/loss", "personal/accuracy"}
            | {f"personal/loss_{name}" for name in ("mean", "std", "p90", "worst")}
            | {f"personal/accuracy_{name}" for name in ("mean", "std", "p10", "worst")}
            if has_own
            else set()
        )


def test_a_smaller_share_is_fewer_bytes(run):
    """Four clients send a body of 8 (64 + 1) numbers, and would send a head of 10 (8 + 1), of four bytes each."""
    rows = {strategy: run(*SMALL, f"strategy={strategy}").rows[0] for strategy in ("fedavg", "fedper", "local_only")}
    for direction in ("up", "down"):
        fedavg, fedper, local_only = (row[f"comm/bytes_{direction}"] for row in rows.values())
        # What is beside the values (names, headers, metrics) is less than 2 kB a message.
        assert 4 * 4 * 10 * 9 <= fedavg - fedper < 4 * (4 * 10 * 9 + 2000)
        assert 4 * 4 * 8 * 65 <= fedper - local_only < 4 * (4 * 8 * 65 + 2000)
        assert local_only < 4 * 2000


def test_a_head_of_ones_own_choice_stays_with_the_client(run):
    options = ["strategy=fedper", "model.widths=[8,7]", "strategy.client.head=[layers.3,layers.5]"]
    result = run(*SMALL, *options, "federation.num_rounds=1")
    assert list(result.arrays) == BODY
    assert set(state_of(result.experiment, 0)["parts"]) == {
        f"layers.{i}.{kind}" for i in (3, 5) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("strategy", ["fedper", "fedrep", "fedbabu"])
def test_with_an_empty_head_it_is_fedavg_bit_for_bit(run, strategy):
    fedavg, other = run(*SMALL), run(*SMALL, f"strategy={strategy}", "strategy.client.head=[]")
    assert [row["model/sha256"] for row in other.rows] == [row["model/sha256"] for row in fedavg.rows]
    assert other.numbers() == fedavg.numbers()  # so no client has a model of its own


@pytest.mark.parametrize("strategy", ["fedper", "fedrep", "fedbabu"])
def test_a_head_that_the_model_does_not_have_is_refused(compose, strategy):
    experiment = Experiment(*compose(f"strategy={strategy}", "strategy.client.head=[nonsense]", "tracker=none"))
    with pytest.raises(InputError) as error:
        prepare(experiment)
    assert str(error.value) == (
        f"strategy={strategy}: the head may consist of layers, layers.1, layers.3, got nonsense"
    )


def test_fedper_by_hand(run):
    """Two clients' rounds, each from the averaged body and its own last head."""
    result = run(*SMALL, "strategy=fedper", "federation.num_supernodes=2", "dtype=float64")
    experiment = result.experiment
    start = initial_state(experiment)
    body, heads = {name: start[name] for name in BODY}, [{name: start[name] for name in HEAD}] * 2
    sizes = np.array([len(rows) for rows in experiment.data.train])
    for server_round in (1, 2):
        trained = [
            trained_alone(experiment, body | heads[i], LocalUpdate(), None, server_round, i).state_dict()
            for i in range(2)
        ]
        heads = [{name: own[name] for name in HEAD} for own in trained]
        body = {name: sum(n * own[name] for n, own in zip(sizes, trained, strict=True)) / sizes.sum() for name in BODY}
    for name in BODY:
        np.testing.assert_allclose(result.arrays[name], body[name].numpy(), rtol=0, atol=1e-12)
    model = copy.deepcopy(experiment.model)
    accuracies = []
    for i in range(2):
        model.load_state_dict(body | heads[i])
        accuracies.append(accuracy(model, experiment.data.validation_samples(i)))
    row = result.rows[-1]
    assert row["personal/accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert row["personal/accuracy_worst"] == min(accuracies)
    # The clients measure what they received under the initial head, which is the server's.
    model.load_state_dict(start | body)
    received = [accuracy(model, experiment.data.validation_samples(i)) for i in range(2)]
    assert row["clients/accuracy_mean"] == pytest.approx(np.mean(received))
    assert row["eval/accuracy"] == pytest.approx(accuracy(model, (experiment.data.test_x, experiment.data.test_y)))


def trained_alone(experiment, state, update, stages, server_round, partition_id):
    """Return the model after a client's own training in a round, without apps and grid."""
    model, local = copy.deepcopy(experiment.model), experiment.config.local
    x, y = experiment.data.train_samples(partition_id)
    seeds = Seeds(experiment.config.seed, server_round, partition_id)
    stages = update.stages(model) if stages is None else stages
    task = Task(state, x, y, update, stages, {"lr": experiment.config.optimizer["lr"]}, seeds)
    LocalTrainer(model, torch.optim.SGD, LocalWork(local.epochs, local.steps, local.batch_size))(task)
    return model


def test_local_only_is_each_client_alone(run):
    result = run(*SMALL, "strategy=local_only")
    experiment = result.experiment
    accuracies, losses = [], []
    for i in range(4):
        state = initial_state(experiment)
        for server_round in (1, 2):
            model = trained_alone(experiment, state, LocalUpdate(), None, server_round, i)
            state = model.state_dict()
        x, y = experiment.data.validation_samples(i)
        accuracies.append(accuracy(model, (x, y)))
        losses.append(F.cross_entropy(model(x), y).item())
        for name, array in values(state_of(experiment, i)["parts"]).items():
            np.testing.assert_array_equal(array, state[name].numpy())
    row = result.rows[-1]
    assert row["personal/accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert row["personal/accuracy_std"] == pytest.approx(np.std(accuracies))
    assert row["personal/loss_mean"] == pytest.approx(np.mean(losses), rel=1e-6)
    sizes = [len(rows) for rows in experiment.data.validation]
    assert row["personal/accuracy"] == pytest.approx(np.average(accuracies, weights=sizes))
    # The server's model is the initial one, in every round.
    assert len({row["eval/loss"] for row in result.rows}) == 1
    assert {row["update/norm"] for row in result.rows} == {0.0}


def test_local_only_takes_any_cohort(run):
    """Who has not trained yet measures the initial model as its own."""
    options = ["strategy=local_only", "sampling=fixed", "sampling.partition_ids=[1]"]
    result = run(*SMALL, *options, "federation.num_rounds=1")
    model = copy.deepcopy(result.experiment.model)
    accuracies = []
    for i in range(4):
        state = initial_state(result.experiment)
        model.load_state_dict(state)
        trained = trained_alone(result.experiment, state, LocalUpdate(), None, 1, i) if i == 1 else model
        accuracies.append(accuracy(trained, result.experiment.data.validation_samples(i)))
    assert result.rows[0]["personal/accuracy_mean"] == pytest.approx(np.mean(accuracies))


def test_a_client_that_was_never_drawn_evaluates_with_the_initial_head(run):
    options = ["strategy=fedper", "sampling=fixed", "sampling.partition_ids=[2]", "federation.num_rounds=3"]
    result = run(*SMALL, *options)
    experiment, losses = result.experiment, []
    model = copy.deepcopy(experiment.model)
    body = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
    for i in range(4):
        own = state_of(experiment, i)
        assert ("parts" in own) == (i == 2)
        head = {name: torch.from_numpy(array) for name, array in values(own["parts"]).items()} if i == 2 else {}
        model.load_state_dict(initial_state(experiment) | body | head)
        x, y = experiment.data.validation_samples(i)
        losses.append(F.cross_entropy(model(x), y).item())
    row = result.rows[-1]
    assert row["personal/loss_mean"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert row["personal/loss_worst"] == pytest.approx(max(losses), rel=1e-6)


def test_fedrep_trains_the_head_under_the_received_body_and_then_the_body_under_that_head():
    """Plain gradient descent on one set of parameters, then on the other."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=generator).double(), torch.randint(3, (20,), generator=generator)
    model = MLP((4,), 3, widths=[5]).double()
    by_hand = copy.deepcopy(model)
    update = HeadThenBody(None, head_epochs=3)
    assert update.stages(model) == (Stage(frozenset(HEAD), 3), Stage(frozenset(BODY), None))
    task = Task(by_hand.state_dict(), x, y, update, update.stages(model), {"lr": 0.5}, lambda _: 0)
    trained = LocalTrainer(model, torch.optim.SGD, LocalWork(None, 2, 0))(task)
    assert trained.num_steps == 3 + 2
    params = dict(by_hand.named_parameters())
    for names, num_steps in ((HEAD, 3), (BODY, 2)):
        for _ in range(num_steps):
            gradients = torch.autograd.grad(F.cross_entropy(by_hand(x), y), [params[name] for name in names])
            with torch.no_grad():
                for name, gradient in zip(names, gradients, strict=True):
                    params[name] -= 0.5 * gradient
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array.numpy(), params[name].detach().numpy(), rtol=0, atol=1e-12)


def test_fedrep_in_a_run(run):
    """One round, by its two stages: the shared body is the mean, the heads stay."""
    result = run(*SMALL, "strategy=fedrep", "strategy.client.head_epochs=2", "federation.num_rounds=1")
    experiment = result.experiment
    update, sizes, bodies = HeadThenBody(None, 2), [], []
    for i in range(4):
        own = trained_alone(experiment, initial_state(experiment), update, None, 1, i).state_dict()
        for name, array in values(state_of(experiment, i)["parts"]).items():
            np.testing.assert_array_equal(array, own[name].numpy())
        bodies.append(own)
        sizes.append(len(experiment.data.train[i]))
    for name in BODY:
        mean = np.average([own[name].numpy() for own in bodies], axis=0, weights=sizes)
        np.testing.assert_allclose(result.arrays[name], mean, rtol=0, atol=1e-6)
    assert result.rows[0]["local/steps"] == sum(3 * -(-n // 10) for n in sizes)


def test_fedbabu_leaves_every_head_at_its_initial_value(run):
    result = run(*SMALL, "strategy=fedbabu", "federation.num_rounds=3")
    start = initial_state(result.experiment)
    for i in range(4):
        for name, array in values(state_of(result.experiment, i)["parts"]).items():
            np.testing.assert_array_equal(array, start[name].numpy())
    for name in BODY:
        assert np.abs(result.arrays[name] - start[name].numpy()).max() > 1e-3


def test_fedbabu_fine_tunes_a_head_for_the_evaluation_alone(run):
    options = ["strategy=fedbabu", "strategy.client.finetune_epochs=2", "local.batch_size=0", "dtype=float64"]
    result = run(*SMALL, *options)
    experiment, losses = result.experiment, []
    for i in range(4):
        # In full batches, nothing is drawn: two steps on the head, from the initial one.
        received = initial_state(experiment) | {name: torch.from_numpy(a) for name, a in result.arrays.items()}
        x, y = experiment.data.train_samples(i)
        hidden = F.linear(x.flatten(1), received[BODY[0]], received[BODY[1]]).relu()
        weight, bias = (received[name].clone().requires_grad_() for name in HEAD)
        for _ in range(2):
            gradients = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight, bias), y), [weight, bias])
            with torch.no_grad():
                weight -= 0.1 * gradients[0]
                bias -= 0.1 * gradients[1]
        x, y = experiment.data.validation_samples(i)
        hidden = F.linear(x.flatten(1), received[BODY[0]], received[BODY[1]]).relu()
        losses.append(F.cross_entropy(F.linear(hidden, weight, bias), y).item())
    assert result.rows[-1]["personal/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-12)
    seldom = run(*SMALL, *options, "federation.evaluate_every=2")
    for name in BODY:
        np.testing.assert_array_equal(seldom.arrays[name], result.arrays[name])


@pytest.mark.parametrize("strategy", ["fedper", "fedrep", "fedbabu", "ditto", "local_only"])
def test_where_clients_have_two_classes_each_their_own_models_are_better(run, strategy):
    result = run(
        f"strategy={strategy}",
        "partitioner=pathological",
        "federation.num_rounds=3",
        "local.epochs=2",
        "federation.fraction_train=1",
        "model.widths=[16]",
    )
    row = result.rows[-1]
    # A head that tells the client's two classes from the other eight is right in half of the cases by guessing.
    assert row["personal/accuracy_mean"] > max(row["clients/accuracy_mean"], 0.6)


def test_body_only_trains_nothing_of_the_head():
    update, model = BodyOnly(None, 5), MLP((4,), 3, widths=[5])
    assert update.stages(model) == (Stage(frozenset(BODY), None),)
    assert update.adaptation(model) == (Stage(frozenset(HEAD), 5),)


@pytest.fixture
def normed(tmp_path, monkeypatch):
    """Return a folder with a small model that has BatchNorm and LayerNorm."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "two_norms.yaml").write_text("_target_: two_norms_model.TwoNorms\n")
    (tmp_path / "two_norms_model.py").write_text(
        textwrap.dedent(
            """
            from math import prod
            from torch import nn

            class TwoNorms(nn.Module):
                def __init__(self, input_shape, num_classes):
                    super().__init__()
                    self.first, self.batch_norm = nn.Linear(prod(input_shape), 8), nn.BatchNorm1d(8)
                    self.second, self.layer_norm = nn.Linear(8, 8), nn.LayerNorm(8)
                    self.last = nn.Linear(8, num_classes)

                def forward(self, x):
                    x = self.batch_norm(self.first(x.flatten(1))).relu()
                    return self.last(self.layer_norm(self.second(x)).relu())
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_fedbn_keeps_batch_norm_and_shares_the_rest(run, normed):
    options = [option for option in SMALL if not option.startswith(("model.", "local."))]
    options += ["local.epochs=null", "local.steps=3", "local.batch_size=0", "model=two_norms"]
    result = run(*options, "strategy=fedbn", config_dir=normed)
    shared = [f"{layer}.{kind}" for layer in ("first", "second", "layer_norm", "last") for kind in ("weight", "bias")]
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    own = [f"batch_norm.{entry}" for entry in entries]
    assert set(result.arrays) == set(shared)
    kept = [values(state_of(result.experiment, i)["parts"]) for i in range(4)]
    for parts in kept:
        assert set(parts) == set(own)
        assert parts["batch_norm.num_batches_tracked"] == 2 * 3  # what was kept in round 1 is there in round 2
    for name in own[:-1]:
        assert all(np.abs(kept[0][name] - parts[name]).max() > 1e-6 for parts in kept[1:])
    assert all("personal/accuracy_mean" in row for row in result.rows)


def test_fedbn_needs_batch_norm(compose):
    experiment = Experiment(*compose("strategy=fedbn", "tracker=none"))
    with pytest.raises(InputError) as error:
        prepare(experiment)
    assert str(error.value) == (
        "strategy=fedbn: the model has no BatchNorm layer to keep; try model=resnet18 model.norm=batch"
    )


@pytest.mark.parametrize(("lam", "personal_steps"), [(0.5, "null"), (2.0, "5")])
def test_ditto_on_quadratics(run, lam, personal_steps):
    """In a full batch, an epoch is a step: ``v <- v - eta (H (v - c) + lam (v - w))``, w as received, v as kept."""
    options = [*DIABETES, "local.steps=3", "federation.num_rounds=3"]
    result = run(
        *options, "strategy=ditto", f"strategy.client.lam={lam}", f"strategy.client.personal_epochs={personal_steps}"
    )
    experiment, fedavg = result.experiment, run(*options)
    assert [row["model/sha256"] for row in result.rows] == [row["model/sha256"] for row in fedavg.rows]

    num_steps = 3 if personal_steps == "null" else int(personal_steps)
    problems = [problem(experiment.data.train_samples(i)) for i in range(4)]
    sizes = [len(y) for _, y in problems]
    w = stacked(values(experiment.initial_arrays))
    own = [w] * 4
    for _ in range(3):
        for i, (design, y) in enumerate(problems):
            for _ in range(num_steps):
                gradient = 2 / len(y) * design.T @ (design @ own[i] - y)
                own[i] = own[i] - 0.05 * (gradient + lam * (own[i] - w))
        w = np.average([descend(w, *p, 3) for p in problems], axis=0, weights=sizes)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)
    losses = []
    for i in range(4):
        np.testing.assert_allclose(stacked(values(state_of(experiment, i)["own"])), own[i], rtol=0, atol=1e-10)
        design, y = problem(experiment.data.validation_samples(i))
        losses.append(np.mean((design @ own[i] - y) ** 2))
    assert result.rows[-1]["personal/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-10)
    assert result.rows[-1]["local/steps"] == 4 * (3 + num_steps)


def test_ditto_keeps_an_optimizer_for_each_of_its_two_models(run):
    """Momentum on both: the global model's is FedAvg's, and the own model's goes on from its own."""
    options = [*DIABETES, "local.steps=2", "federation.num_rounds=3", "optimizer.momentum=0.5"]
    options += ["local.keep_optimizer_state=true"]
    result, fedavg = run(*options, "strategy=ditto"), run(*options)
    assert [row["model/sha256"] for row in result.rows] == [row["model/sha256"] for row in fedavg.rows]
    experiment = result.experiment
    w = stacked(values(experiment.initial_arrays))
    own, own_velocity, velocity = [w] * 4, [np.zeros_like(w)] * 4, [np.zeros_like(w)] * 4
    problems = [problem(experiment.data.train_samples(i)) for i in range(4)]
    sizes = [len(y) for _, y in problems]
    for _ in range(3):
        models = []
        for i, (design, y) in enumerate(problems):
            model = w
            for _ in range(2):
                velocity[i] = 0.5 * velocity[i] + 2 / len(y) * design.T @ (design @ model - y)
                model = model - 0.05 * velocity[i]
                gradient = 2 / len(y) * design.T @ (design @ own[i] - y) + 1.0 * (own[i] - w)
                own_velocity[i] = 0.5 * own_velocity[i] + gradient
                own[i] = own[i] - 0.05 * own_velocity[i]
            models.append(model)
        w = np.average(models, axis=0, weights=sizes)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)
    for i in range(4):
        np.testing.assert_allclose(stacked(values(state_of(experiment, i)["own"])), own[i], rtol=0, atol=1e-10)


def test_centralised_is_gradient_descent_on_all_the_data(run):
    result = run(*DIABETES, "strategy=centralised", "local.steps=3", "federation.num_rounds=4")
    experiment = result.experiment
    problems = [problem(experiment.data.train_samples(i)) for i in range(4)]
    design, y = (np.concatenate(arrays) for arrays in zip(*problems, strict=True))
    w = descend(stacked(values(experiment.initial_arrays)), design, y, 3 * 4)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)

    row = result.rows[-1]
    assert row["clients/sampled"] == 1
    assert row["clients/evaluated"] == 4  # each on its own validation data
    losses = []
    for i in range(4):
        own_design, own_y = problem(experiment.data.validation_samples(i))
        losses.append(np.mean((own_design @ w - own_y) ** 2))
    assert row["clients/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-10)
    assert row["clients/loss_worst"] == pytest.approx(max(losses), abs=1e-10)


def test_fedsgd_is_one_full_step_of_everyone_whatever_the_local_defaults(run):
    options = [o for o in DIABETES if not o.startswith("local.")]
    result = run(*options, "strategy=fedsgd", "federation.num_rounds=3")
    experiment = result.experiment
    assert [row["local/steps"] for row in result.rows] == [4, 4, 4]
    problems = [problem(experiment.data.train_samples(i)) for i in range(4)]
    design, y = (np.concatenate(arrays) for arrays in zip(*problems, strict=True))
    w = descend(stacked(values(experiment.initial_arrays)), design, y, 3)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)


def test_centralised_and_fedsgd_are_the_same_where_all_take_one_full_step(run):
    options = [*DIABETES, "federation.num_rounds=3"]
    fedsgd = run(*[o for o in options if not o.startswith("local.")], "strategy=fedsgd")
    centralised = run(*options, "strategy=centralised", "local.steps=1")
    np.testing.assert_allclose(stacked(centralised.arrays), stacked(fedsgd.arrays), rtol=0, atol=1e-12)


def test_a_head_that_is_the_whole_model_leaves_nothing_to_train(compose):
    from fedresearch.errors import InputError
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    experiment = Experiment(*compose("strategy=fedbabu", "strategy.client.head=[layers]", "tracker=none"))
    with pytest.raises(
        InputError, match=r"strategy=fedbabu: the head is the whole model, so that nothing is shared; try strategy=l"
    ):
        prepare(experiment)


# What goes by the global model, or by the test split.


@pytest.mark.parametrize("strategy", ["fedrep", "local_only"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "checkpoint.best=eval/accuracy",
            r"checkpoint.best uses eval/accuracy .* try .*checkpoint.best=personal/",
        ),
        (
            "checkpoint.best=clients/accuracy_mean",
            r"checkpoint.best uses clients/accuracy_mean of a global model that",
        ),
        (
            "federation.target_accuracy=0.9",
            r"federation.target_accuracy uses eval/accuracy of a global model that no cli",
        ),
    ],
)
def test_what_goes_by_a_model_that_nobody_trains_is_refused(compose, strategy, option, message):
    with pytest.raises(InputError, match=message):
        check_selection(Experiment(*compose(f"strategy={strategy}", option, "tracker=none")))


@pytest.mark.parametrize("strategy", ["ditto", "fedper", "fedrep", "fedbabu", "fedbn", "local_only"])
def test_models_of_clients_whose_data_is_pooled_are_refused(compose, strategy):
    model = ["model=resnet18", "model.norm=batch"] if strategy == "fedbn" else []
    with pytest.raises(InputError) as error:
        prepare(Experiment(*compose(f"strategy={strategy}", "strategy.pooled=true", *model, "tracker=none")))
    assert str(error.value) == (
        f"strategy={strategy} trains a model for each client, and strategy.pooled=true leaves one client with all "
        "data; try strategy.pooled=false"
    )


def test_of_a_second_model_it_is_said_whose_counts(compose, caplog):
    check_selection(Experiment(*compose("strategy=ditto", "checkpoint.best=clients/loss", "tracker=none")))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("checkpoint.best uses clients/loss of the global model; with strategy=ditto")
    assert message.endswith("personal/accuracy")
    check_selection(Experiment(*compose("strategy=ditto", "checkpoint.best=personal/loss", "tracker=none")))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("checkpoint.best=eval/accuracy", "chooses the round on the test split"),
        ("federation.target_accuracy=0.9", "ends the run by eval/accuracy, on the test split"),
    ],
)
def test_choosing_on_the_test_split_is_named(compose, caplog, option, message):
    check_selection(Experiment(*compose(option, "tracker=none")))
    (line,) = [record.getMessage() for record in caplog.records]
    assert message in line


@pytest.mark.parametrize(
    ("options", "column", "hint"),
    [
        ([], "eval/acuracy", "try checkpoint.best=eval/accuracy"),
        ([], "accuracy", "try checkpoint.best=clients/accuracy"),
        ([], "train/los", "try checkpoint.best=train/loss"),
        ([], "model/sha256", "it may be train/loss, clients/failed, eval/loss, clients/loss, .*"),
        ([], "personal/accuracy", "try checkpoint.best=clients/accuracy"),
        (["dataset=diabetes", "model=logistic", "partitioner=iid"], "eval/accuracy", "it may be train/loss, .*"),
        (["federation.fraction_evaluate=0"], "clients/loss", "it may be train/loss, .*"),
    ],
)
def test_a_column_that_there_will_not_be_is_refused_before_the_run(compose, options, column, hint):
    with pytest.raises(InputError, match=rf"^checkpoint.best={column} is not a column of this run; {hint}$"):
        check_selection(Experiment(*compose(*options, f"checkpoint.best={column}", "tracker=none")))


@pytest.mark.slow
def test_a_run_whose_own_models_are_not_finite_has_diverged(tmp_path):
    """A step against an attraction of lam multiplies the distance by 1 - 0.1 * 1e9; the global model knows none."""
    overrides = ["strategy=ditto", "strategy.client.lam=1e9", "model=logistic", "local.steps=10"]
    conduct(tmp_path / "run", *overrides, "federation.num_rounds=1", "federation.num_supernodes=2")
    (row,) = [row for row in rows_of(tmp_path / "run") if row["round"] == 1]
    assert row["personal/loss"] is None
    assert row["eval/loss"] < 3
    assert read_record(tmp_path / "run")["status"] == "diverged"
