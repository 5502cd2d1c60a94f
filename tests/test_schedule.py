"""The learning rate of each round, and optimizers that continue over rounds."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.federation.schedule import constant, cosine, inverse, step

DIABETES = [
    "dataset=diabetes",
    "model=logistic",
    "partitioner=linear",
    "dtype=float64",
    "validation.fraction=0",
    "federation.fraction_train=1",
    "federation.fraction_evaluate=0",
    "federation.num_supernodes=4",
    "local.batch_size=0",
    "local.epochs=null",
    "local.steps=1",
    "optimizer.lr=0.05",
]
ONE_CLIENT = [*DIABETES, "federation.num_supernodes=1", "partitioner=iid"]


def rates(schedule, num_rounds, lr=0.8, **options):
    """Return the learning rates of a run's rounds."""
    return [schedule(lr=lr, server_round=r, num_rounds=num_rounds, **options) for r in range(1, num_rounds + 1)]


def pooled(experiment):
    """Return all clients' design matrices with a column of ones, and targets, as one problem."""
    samples = [experiment.data.train_samples(i) for i in range(experiment.data.num_partitions)]
    x, y = (np.concatenate([array.numpy() for array in arrays]) for arrays in zip(*samples, strict=True))
    return np.column_stack([x, np.ones(len(x))]), y[:, 0]


def initial(experiment):
    return stacked({name: array.numpy() for name, array in experiment.initial_arrays.items()})


def stacked(arrays):
    """Return the model's weights and bias as one vector."""
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.append(weight.ravel(), bias)


def descend(experiment, learning_rates):
    """Return central gradient descent's point: one full step for each learning rate."""
    (design, y), w = pooled(experiment), initial(experiment)
    for lr in learning_rates:
        w = w - lr * 2 / len(y) * design.T @ (design @ w - y)
    return w


def central(experiment, make, num_steps):
    """Return where torch's own optimizer ends after full steps on all the data."""
    design, y = (torch.from_numpy(array) for array in pooled(experiment))
    w = torch.nn.Parameter(torch.from_numpy(initial(experiment)))
    optimizer = make([w])
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((design @ w - y) ** 2).mean().backward()
        optimizer.step()
    return w.detach().numpy()


def test_constant_is_constant():
    assert rates(constant, 4) == [0.8] * 4


def test_step_multiplies_every_few_rounds():
    assert rates(step, 7, step_size=3, gamma=0.5) == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    assert rates(step, 3, step_size=1, gamma=0.1) == pytest.approx([0.8, 0.08, 0.008])


def test_inverse_divides_by_the_round():
    assert rates(inverse, 4, lr=1.0) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_cosine_by_hand():
    """Four rounds are at the angles 0, 45, 90 and 135 degrees: (1 + cos) / 2 of the way from 0.2 to 1."""
    half = math.sqrt(0.5)
    expected = [1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)]
    assert rates(cosine, 4, lr=1.0, min_lr=0.2) == pytest.approx(expected, abs=1e-15)


def test_cosine_would_reach_its_minimum_one_round_after_the_last():
    assert cosine(lr=1.0, server_round=11, num_rounds=10, min_lr=0.25) == pytest.approx(0.25)
    assert rates(cosine, 10, lr=1.0, min_lr=0.25)[-1] > 0.25


@given(num_rounds=st.integers(2, 60), lr=st.floats(0.01, 10, allow_subnormal=False), share=st.floats(0, 0.9))
def test_cosine_falls_from_the_learning_rate_and_stays_above_its_minimum(num_rounds, lr, share):
    falling = rates(cosine, num_rounds, lr=lr, min_lr=share * lr)
    assert falling[0] == pytest.approx(lr)
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert falling[-1] > share * lr


@pytest.mark.parametrize(
    ("options", "learning_rates"),
    [
        ([], [0.05] * 5),
        (
            ["schedule=step", "optimizer.schedule.step_size=1", "optimizer.schedule.gamma=0.5"],
            [0.05, 0.025, 0.0125, 0.00625, 0.003125],
        ),
        (
            ["schedule=step", "optimizer.schedule.step_size=2", "optimizer.schedule.gamma=0.1"],
            [0.05, 0.05, 0.005, 0.005, 0.0005],
        ),
        (["schedule=inverse"], [0.05, 0.05 / 2, 0.05 / 3, 0.05 / 4, 0.05 / 5]),
        (
            ["schedule=cosine", "optimizer.schedule.min_lr=0.01"],
            [0.01 + 0.04 * (1 + math.cos(math.radians(angle))) / 2 for angle in (0, 36, 72, 108, 144)],
        ),
    ],
    ids=["constant", "step 1", "step 2", "inverse", "cosine"],
)
def test_a_run_descends_with_the_rounds_learning_rate(run, options, learning_rates):
    """One full-batch step on every client is a central step."""
    result = run(*DIABETES, *options, "federation.num_rounds=5")
    expected = descend(result.experiment, learning_rates)
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-10)


OPTIMIZERS = {
    "momentum": (
        ["optimizer=sgd", "optimizer.momentum=0.9"],
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    ),
    "nesterov": (
        ["optimizer=sgd", "optimizer.momentum=0.8", "optimizer.nesterov=true"],
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, nesterov=True),
    ),
    "adam": (["optimizer=adam"], lambda params: torch.optim.Adam(params, lr=0.05)),
    "adagrad": (["optimizer=adagrad"], lambda params: torch.optim.Adagrad(params, lr=0.05)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_kept_optimizer_continues_as_if_without_rounds(run, optimizer):
    options, make = OPTIMIZERS[optimizer]
    result = run(*ONE_CLIENT, *options, "federation.num_rounds=8", "local.keep_optimizer_state=true")
    expected = central(result.experiment, make, 8)
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-12)


def test_rounds_and_steps_of_a_kept_optimizer_are_interchangeable(run):
    options = [*ONE_CLIENT, "optimizer=adam", "local.keep_optimizer_state=true"]
    many = run(*options, "federation.num_rounds=6", "local.steps=1")
    few = run(*options, "federation.num_rounds=2", "local.steps=3")
    np.testing.assert_array_equal(stacked(many.arrays), stacked(few.arrays))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_is_not_kept_restarts_in_every_round(run, optimizer):
    options, make = OPTIMIZERS[optimizer]
    result = run(*ONE_CLIENT, *options, "federation.num_rounds=2")
    (design, y), w = pooled(result.experiment), initial(result.experiment)
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.from_numpy(w))
        parameter.grad = torch.from_numpy(2 / len(y) * design.T @ (design @ w - y))
        make([parameter]).step()
        w = parameter.detach().numpy().copy()
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-12)
    assert np.abs(w - central(result.experiment, make, 2)).max() > 1e-3  # otherwise keeping would have no effect


def test_momentum_that_is_not_kept_is_gradient_descent(run):
    result = run(*ONE_CLIENT, "optimizer.momentum=0.9", "federation.num_rounds=8")
    np.testing.assert_allclose(stacked(result.arrays), descend(result.experiment, [0.05] * 8), rtol=0, atol=1e-12)


def test_a_kept_optimizer_uses_the_rounds_learning_rate_and_not_its_last(run):
    result = run(
        *ONE_CLIENT,
        "optimizer.momentum=0.9",
        "federation.num_rounds=3",
        "local.keep_optimizer_state=true",
        "schedule=inverse",
    )
    (design, y), w, velocity = pooled(result.experiment), initial(result.experiment), 0.0
    for server_round in (1, 2, 3):
        velocity = 0.9 * velocity + 2 / len(y) * design.T @ (design @ w - y)
        w = w - 0.05 / server_round * velocity
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-12)


def test_each_client_keeps_its_own_optimizer(run):
    """Cohorts of two in turn: a client that skips a round continues from its own last momentum."""
    result = run(
        *DIABETES,
        "optimizer.momentum=0.9",
        "local.keep_optimizer_state=true",
        "sampling=round_robin",
        "federation.fraction_train=0.5",
        "federation.num_rounds=4",
    )
    experiment = result.experiment
    w, velocity = initial(experiment), [0.0] * 4
    for cohort in ([0, 1], [2, 3], [0, 1], [2, 3]):
        models, sizes = [], []
        for i in cohort:
            x, y = (array.numpy() for array in experiment.data.train_samples(i))
            design = np.column_stack([x, np.ones(len(x))])
            velocity[i] = 0.9 * velocity[i] + 2 / len(y) * design.T @ (design @ w - y[:, 0])
            models.append(w - 0.05 * velocity[i])
            sizes.append(len(y))
        w = np.average(models, axis=0, weights=sizes)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)


def test_each_stage_of_a_round_keeps_its_own_optimizer(run):
    """FedRep trains the head first, then the body: two optimizers, each parameter's momentum in one of them."""
    options = ["strategy=fedrep", "optimizer.momentum=0.5", "local.keep_optimizer_state=true", "optimizer.lr=0.01"]
    result = run(*options, "model.widths=[8]", "local.epochs=1", "federation.num_rounds=2")
    kept = [state["optimizer"] for state in result.experiment.grid.states.values()]
    assert kept
    for state in kept:
        assert set(state) == {
            "0/layers.3.weight/momentum_buffer",
            "0/layers.3.bias/momentum_buffer",
            "1/layers.1.weight/momentum_buffer",
            "1/layers.1.bias/momentum_buffer",
        }


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_strategies_that_need_a_new_optimizer_reject_a_kept_one(compose, strategy):
    experiment = Experiment(*compose(f"strategy={strategy}", "local.keep_optimizer_state=true", "tracker=none"))
    with pytest.raises(InputError) as error:
        prepare(experiment)
    assert str(error.value).endswith("try local.keep_optimizer_state=false")
    assert f"strategy={strategy}" in str(error.value)


def test_scaffold_with_full_gradients_accepts_a_kept_optimizer(run):
    options = ["strategy=scaffold", "strategy.client.option=I", "local.keep_optimizer_state=true"]
    result = run(*DIABETES, *options, "optimizer.momentum=0.5", "federation.num_rounds=2")
    assert result.rows[1]["eval/loss"] < result.rows[0]["eval/loss"]
