"""BatchNorm's running statistics in a federation: averaged, kept by the clients, or none."""

import json
import textwrap
from contextlib import nullcontext
from math import prod

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedresearch import load_model
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.run import run_experiment

BUFFERS = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
PARAMETERS = ["first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias"]
NORMED = [
    "model=normed",
    "partitioner=linear",
    "dtype=float64",
    "tracker=none",
    "federation.num_supernodes=3",
    "federation.fraction_train=1",
    "federation.num_rounds=1",
    "local.epochs=null",
    "local.steps=1",
    "local.batch_size=0",
    "optimizer.lr=0.1",
]


@pytest.fixture
def config_dir(tmp_path, monkeypatch):
    """Return a folder with a small model that has BatchNorm."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "normed.yaml").write_text("_target_: normed_model.Normed\n")
    (tmp_path / "normed_model.py").write_text(
        textwrap.dedent(
            """
            from math import prod
            from torch import nn

            class Normed(nn.Module):
                def __init__(self, input_shape, num_classes):
                    super().__init__()
                    self.first = nn.Linear(prod(input_shape), 6)
                    self.norm = nn.BatchNorm1d(6)
                    self.last = nn.Linear(6, num_classes)

                def forward(self, x):
                    return self.last(self.norm(self.first(x.flatten(1))).relu())
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def normed(run, config_dir):
    """Return a function that runs the small model."""
    return lambda *overrides: run(*NORMED, *overrides, config_dir=config_dir)


def statistics(experiment, partition_id):
    """Return a client's running mean and variance after one full batch through the initial first layer.

    They start at 0 and 1 and move a tenth of the way, to the unbiased variance.
    """
    state = initial_state(experiment)
    weight, bias = state["first.weight"].numpy(), state["first.bias"].numpy()
    x = experiment.data.train_samples(partition_id)[0].flatten(1).numpy()
    hidden = x @ weight.T + bias
    return 0.1 * hidden.mean(0), 0.9 + 0.1 * hidden.var(0, ddof=1)


def initial_state(experiment):
    return experiment.state_dict(experiment.initial_arrays)


def forward(state, x, mean=None, var=None):
    """Return the small model's outputs, normalised by given statistics, or else by the batch's."""
    hidden = F.linear(x.flatten(1), state["first.weight"], state["first.bias"])
    hidden = F.batch_norm(hidden, mean, var, state["norm.weight"], state["norm.bias"], training=mean is None)
    return F.linear(hidden.relu(), state["last.weight"], state["last.bias"])


def fedavg_by_hand(experiment, *, num_rounds, num_steps, weights):
    """Return FedAvg's last state, from torch's functions alone."""
    state = initial_state(experiment)
    for _ in range(num_rounds):
        trained = []
        for i in range(experiment.data.num_partitions):
            x, y = experiment.data.train_samples(i)
            own = {name: tensor.clone() for name, tensor in state.items()}
            params = [own[name].requires_grad_() for name in PARAMETERS]
            for _ in range(num_steps):
                with torch.no_grad():
                    hidden = F.linear(x.flatten(1), own["first.weight"], own["first.bias"])
                    own["norm.running_mean"] = 0.9 * own["norm.running_mean"] + 0.1 * hidden.mean(0)
                    own["norm.running_var"] = 0.9 * own["norm.running_var"] + 0.1 * hidden.var(0)
                gradients = torch.autograd.grad(F.cross_entropy(forward(own, x), y), params)
                with torch.no_grad():
                    for param, gradient in zip(params, gradients, strict=True):
                        param -= 0.1 * gradient
            trained.append({name: tensor.detach() for name, tensor in own.items()})
        state = {
            name: sum(w * own[name] for w, own in zip(weights, trained, strict=True)) / sum(weights) for name in state
        }
    return state


def sizes(experiment):
    return [len(rows) for rows in experiment.data.train]


def test_running_statistics_are_the_mean_weighted_by_examples(normed):
    result = normed()
    weights = sizes(result.experiment)
    assert len(set(weights)) == 3  # or the weighting would not show
    means, variances = zip(*(statistics(result.experiment, i) for i in range(3)), strict=True)
    for name, expected in (("norm.running_mean", means), ("norm.running_var", variances)):
        np.testing.assert_allclose(
            result.arrays[name], np.average(expected, axis=0, weights=weights), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["strategy=fedmedian"], np.median),
        (["strategy=fedtrimmedavg", "strategy.server.beta=0.34"], np.median),  # of three, the middle one
        (["strategy=fedtrimmedavg", "strategy.server.beta=0"], np.mean),
        (["strategy=krum"], np.median),
        (["strategy=fedavg", "strategy.buffers=median"], np.median),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_robust_rule_holds_for_the_statistics_too(normed, options, rule):
    result = normed(*options)
    means, variances = zip(*(statistics(result.experiment, i) for i in range(3)), strict=True)
    for name, expected in (("norm.running_mean", means), ("norm.running_var", variances)):
        np.testing.assert_allclose(result.arrays[name], rule(expected, axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted_by", ["num-examples", "uniform"])
def test_the_next_round_starts_from_the_averaged_statistics(normed, weighted_by):
    result = normed("federation.num_rounds=3", "local.steps=2", f"strategy.weighted_by={weighted_by}")
    weights = sizes(result.experiment) if weighted_by == "num-examples" else [1, 1, 1]
    expected = fedavg_by_hand(result.experiment, num_rounds=3, num_steps=2, weights=weights)
    for name in [*PARAMETERS, "norm.running_mean", "norm.running_var"]:
        np.testing.assert_allclose(result.arrays[name], expected[name].numpy(), rtol=0, atol=1e-10)


def test_the_count_of_batches_is_averaged_and_stays_an_integer(normed):
    result = normed("local.epochs=2", "local.steps=null", "local.batch_size=50", "federation.num_rounds=1")
    weights = sizes(result.experiment)
    steps = [2 * -(-n // 50) for n in weights]
    assert len(set(steps)) == 3
    count = result.arrays["norm.num_batches_tracked"]
    assert count.dtype == np.int64
    assert count.shape == ()
    assert count == np.rint(np.average(steps, weights=weights))


STEPPING = {
    "fedavgm": [],
    "fedadam": [],
    "fednova": [],
    "feddyn": ["strategy.weighted_by=num-examples"],
    "scaffold": ["strategy.server.server_learning_rate=0.5"],
    "qfedavg": [],
    "krum": ["strategy.buffers=average"],
}


@pytest.mark.parametrize("strategy", STEPPING)
def test_a_server_that_steps_or_selects_does_so_for_the_parameters_alone(normed, strategy):
    """One local step: the statistics are of the first forward pass, which no strategy changes in round 1."""
    options = [f"strategy={strategy}", *STEPPING[strategy]]
    fedavg, other = normed(), normed(*options)
    for name in BUFFERS:
        np.testing.assert_array_equal(other.arrays[name], fedavg.arrays[name])

    later = normed(*options, "federation.num_rounds=2", "local.steps=3")
    assert (later.arrays["norm.running_var"] > 0).all()
    assert later.arrays["norm.num_batches_tracked"] == 2 * 3
    assert later.arrays["norm.num_batches_tracked"].dtype == np.int64
    assert set(later.arrays) == {*PARAMETERS, *BUFFERS}
    assert all(np.isfinite(array).all() for array in later.arrays.values())


@pytest.mark.parametrize("strategy", ["fedavgm", "scaffold"])
def test_half_a_server_step_is_half_of_fedavgs_for_parameters(normed, strategy):
    """And none of the halving reaches the statistics."""
    fedavg, other = normed(), normed(f"strategy={strategy}", "strategy.server.server_learning_rate=0.5")
    start = initial_state(fedavg.experiment)
    for name in PARAMETERS:
        middle = (start[name].numpy() + fedavg.arrays[name]) / 2
        np.testing.assert_allclose(other.arrays[name], middle, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(other.arrays["norm.running_var"], fedavg.arrays["norm.running_var"])


def test_training_is_the_same_whatever_becomes_of_the_statistics(normed):
    """In training, BatchNorm normalises by the batch."""
    results = [
        normed(f"strategy.buffers={choice}", "federation.num_rounds=3") for choice in ("average", "local", "drop")
    ]
    assert len({result.rows[-1]["eval/loss"] for result in results}) == 3  # evaluation is not the same
    for result in results[1:]:
        for name in PARAMETERS:
            np.testing.assert_array_equal(result.arrays[name], results[0].arrays[name])


def test_local_statistics_do_not_travel(normed):
    average, local = normed(), normed("strategy.buffers=local")
    assert list(average.experiment.initial_arrays) == list(initial_state(average.experiment))
    assert set(local.experiment.initial_arrays) == set(local.arrays) == set(PARAMETERS)
    saved = sum(average.experiment.initial_arrays[name].numpy().nbytes for name in BUFFERS)
    for key in ("comm/bytes_up", "comm/bytes_down", "comm/evaluate_bytes_down"):
        # Three messages; each array has its header beside its values.
        assert average.rows[0][key] - local.rows[0][key] >= 3 * saved


def test_the_global_models_own_statistics_stay_as_they_were(normed):
    local = normed("strategy.buffers=local", "federation.num_rounds=3")
    state = initial_state(local.experiment)
    assert state["norm.running_mean"].tolist() == [0.0] * 6
    assert state["norm.running_var"].tolist() == [1.0] * 6
    assert state["norm.num_batches_tracked"] == 0
    # So the server evaluates unnormalised hidden units.
    params = {name: torch.from_numpy(array) for name, array in local.arrays.items()}
    outputs = forward(params, local.experiment.data.test_x, torch.zeros(6).double(), torch.ones(6).double())
    expected = F.cross_entropy(outputs, local.experiment.data.test_y).item()
    assert local.rows[-1]["eval/loss"] == pytest.approx(expected, abs=1e-12)


def test_each_client_evaluates_the_global_parameters_with_its_own_statistics(normed):
    result = normed("strategy.buffers=local")
    experiment = result.experiment
    params = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
    losses = []
    for i in range(3):
        mean, var = (torch.from_numpy(statistic) for statistic in statistics(experiment, i))
        x, y = experiment.data.validation_samples(i)
        losses.append(F.cross_entropy(forward(params, x, mean, var), y).item())
        kept = experiment.grid.states[i + 2]["parts"]
        assert set(kept) == set(BUFFERS)
        np.testing.assert_allclose(kept["norm.running_mean"].numpy(), mean.numpy(), rtol=0, atol=1e-12)
    row = result.rows[0]
    assert row["personal/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-12)
    assert row["personal/loss_std"] == pytest.approx(np.std(losses), abs=1e-12)
    assert row["personal/loss_worst"] == pytest.approx(max(losses), abs=1e-12)
    assert row["personal/loss_mean"] != row["clients/loss_mean"]


def test_averaged_statistics_are_nobodys_own(normed):
    assert not any(key.startswith("personal/") for key in normed().rows[0])


def test_without_statistics_evaluation_normalises_by_the_batch(normed):
    result = normed("strategy.buffers=drop", "federation.num_rounds=2")
    experiment = result.experiment
    assert set(result.arrays) == set(experiment.model.state_dict()) == set(PARAMETERS)
    params = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
    outputs = forward(params, experiment.data.test_x)
    assert len(outputs) <= 1024  # one batch of an evaluation
    expected = F.cross_entropy(outputs, experiment.data.test_y).item()
    assert result.rows[-1]["eval/loss"] == pytest.approx(expected, abs=1e-12)
    assert not any(key.startswith("personal/") for key in result.rows[0])


@pytest.mark.parametrize("buffers", ["average", "local", "drop"])
def test_the_saved_model_is_the_one_that_was_evaluated(compose, normed, config_dir, buffers):
    config, choices = compose(*NORMED, f"strategy.buffers={buffers}", config_dir=config_dir)
    run_experiment(RunRequest(config, choices, config_dir / "run", [], [], []))
    with pytest.warns(UserWarning, match="norm.num_batches") if buffers == "local" else nullcontext():
        model = load_model(config_dir / "run", trust=True)
    in_memory = normed(f"strategy.buffers={buffers}")
    assert set(model.state_dict()) == {*PARAMETERS, *(BUFFERS if buffers != "drop" else [])}
    assert not model.training
    with torch.no_grad():
        loss = F.cross_entropy(model(in_memory.experiment.data.test_x), in_memory.experiment.data.test_y).item()
    record = json.loads((config_dir / "run" / "run.json").read_text())
    assert record["result"]["eval/loss"] == pytest.approx(loss, abs=1e-12)
    assert in_memory.rows[-1]["eval/loss"] == pytest.approx(loss, abs=1e-12)
    assert record["num_parameters"] == prod((6, 64)) + 6 + 6 + 6 + prod((10, 6)) + 10


def test_weighed_uniformly_the_model_and_the_metrics_are_plain_means(run):
    options = [
        "dataset=diabetes",
        "model=logistic",
        "partitioner=linear",
        "dtype=float64",
        "federation.num_supernodes=4",
        "federation.fraction_train=1",
        "federation.num_rounds=1",
        "local.batch_size=0",
        "local.epochs=null",
        "local.steps=1",
        "optimizer.lr=0.05",
    ]
    uniform, by_examples = (run(*options, f"strategy.weighted_by={key}") for key in ("uniform", "num-examples"))
    experiment = uniform.experiment

    def problem(samples):
        x, y = (array.numpy() for array in samples)
        return np.column_stack([x, np.ones(len(x))]), y[:, 0]

    def stacked(arrays):
        weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
        return np.append(weight.ravel(), bias)

    w = stacked({name: array.numpy() for name, array in experiment.initial_arrays.items()})
    models, train_losses = [], []
    for i in range(4):
        design, y = problem(experiment.data.train_samples(i))
        models.append(w - 0.05 * 2 / len(y) * design.T @ (design @ w - y))
        train_losses.append(np.mean((design @ w - y) ** 2))
    train_sizes, validation_sizes = sizes(experiment), [len(rows) for rows in experiment.data.validation]
    for result, train_weights, weights in (
        (uniform, [1] * 4, [1] * 4),
        (by_examples, train_sizes, validation_sizes),
    ):
        mean = np.average(models, axis=0, weights=train_weights)
        np.testing.assert_allclose(stacked(result.arrays), mean, rtol=0, atol=1e-10)
        losses = []
        for i in range(4):
            design, y = problem(experiment.data.validation_samples(i))
            losses.append(np.mean((design @ mean - y) ** 2))
        row = result.rows[0]
        assert row["train/loss"] == pytest.approx(np.average(train_losses, weights=train_weights), abs=1e-10)
        assert row["clients/loss"] == pytest.approx(np.average(losses, weights=weights), abs=1e-10)
        assert row["clients/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-10)
    assert by_examples.rows[0]["clients/loss"] != by_examples.rows[0]["clients/loss_mean"]


def test_one_sample_cannot_be_normalised_by_itself(compose, config_dir):
    """The first of eleven linear parts of 353 samples is five, one of which it validates on."""
    from fedresearch.errors import InputError
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    options = [*NORMED, "dataset=diabetes", "federation.num_supernodes=11", "strategy.buffers=drop"]
    experiment = Experiment(*compose(*options, config_dir=config_dir))
    with pytest.raises(
        InputError, match=r"cannot be evaluated .*\(partitions \[0\] validate on a batch of one sample; "
    ):
        prepare(experiment)
