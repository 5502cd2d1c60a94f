"""Strategies against the mathematics they implement, through the real apps."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from fedresearch.local.update import LocalUpdate
from fedresearch.models.mlp import MLP
from fedresearch.strategies.fedprox import ProximalUpdate

DIABETES = [
    "dataset=diabetes",
    "model=logistic",
    "partitioner=linear",
    "dtype=float64",
    "validation.fraction=0",
    "federation.fraction_train=1",
    "federation.fraction_evaluate=0",
    "federation.num_supernodes=4",
    "federation.num_rounds=3",
    "local.batch_size=0",
    "local.epochs=null",
    "local.steps=3",
    "optimizer.lr=0.05",
]
ETA_L, TAU = 0.05, 3


def stacked(arrays):
    """Return the model's weights and bias as one vector."""
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.append(weight.ravel(), bias)


def initial(experiment):
    return stacked({name: array.numpy() for name, array in experiment.initial_arrays.items()})


def clients(experiment):
    """Return each client's share of the examples, and its local training as a function of the global model.

    TAU full-batch steps on a quadratic with Hessian H and minimiser c: ``c + (I - ETA_L H)^TAU (x - c)``.
    """
    shares, trainings = [], []
    for partition_id in range(experiment.data.num_partitions):
        x, y = (array.numpy() for array in experiment.data.train_samples(partition_id))
        design = np.column_stack([x, np.ones(len(x))])
        hessian = 2 * design.T @ design / len(x)
        minimiser = np.linalg.lstsq(design, y[:, 0], rcond=None)[0]
        shrink = np.linalg.matrix_power(np.eye(len(hessian)) - ETA_L * hessian, TAU)
        shares.append(len(x))
        trainings.append(lambda w, c=minimiser, k=shrink: c + k @ (w - c))
    return np.array(shares) / sum(shares), trainings


def adaptive(second_moment, *, eta, beta_1, tau, v_0, correction=lambda t: 1.0):
    """Return Reddi et al.'s server step as a function of round, model and mean update, with its state inside."""
    state = {"m": 0.0, "v": v_0}

    def step(server_round, x, delta):
        state["m"] = beta_1 * state["m"] + (1 - beta_1) * delta
        state["v"] = second_moment(state["v"], delta**2)
        return x + eta * correction(server_round) * state["m"] / (np.sqrt(state["v"]) + tau)

    return step


def momentum(server_learning_rate, server_momentum):
    """Return torch's SGD with momentum on the negative mean update."""
    state = {"v": None}

    def step(server_round, x, delta):
        gradient = -delta
        state["v"] = gradient if state["v"] is None else server_momentum * state["v"] + gradient
        return x - server_learning_rate * state["v"]

    return step


ADAM = {"second_moment": lambda v, s: 0.99 * v + 0.01 * s, "eta": 0.1, "beta_1": 0.9, "tau": 1e-3}
YOGI = {"second_moment": lambda v, s: v - 0.01 * s * np.sign(v - s), "eta": 0.01, "beta_1": 0.9, "tau": 1e-3}
ADAGRAD = {"second_moment": lambda v, s: v + s, "eta": 0.1, "beta_1": 0.0, "tau": 1e-3}


def flowers_correction(server_round):
    return np.sqrt(1 - 0.99 ** (server_round + 1)) / (1 - 0.9 ** (server_round + 1))


SERVER_STEPS = {
    "fedavg": lambda: lambda server_round, x, delta: x + delta,
    "fedavgm": lambda: momentum(1.0, 0.9),
    "fedadam": lambda: adaptive(**ADAM, v_0=0.0, correction=flowers_correction),
    "fedyogi": lambda: adaptive(**YOGI, v_0=0.0),
    "fedadagrad": lambda: adaptive(**ADAGRAD, v_0=0.0),
    "fedadam_reddi": lambda: adaptive(**ADAM, v_0=1e-6),
    "fedyogi_reddi": lambda: adaptive(**YOGI, v_0=1e-6),
    "fedadagrad_reddi": lambda: adaptive(**ADAGRAD, v_0=1e-6),
}


@pytest.mark.parametrize("strategy", SERVER_STEPS)
def test_three_rounds_of_the_server_rule(run, strategy):
    result = run(*DIABETES, f"strategy={strategy}")
    shares, trainings = clients(result.experiment)
    step, x = SERVER_STEPS[strategy](), initial(result.experiment)
    for server_round in (1, 2, 3):
        x = step(server_round, x, sum(p * train(x) for p, train in zip(shares, trainings, strict=True)) - x)
    np.testing.assert_allclose(stacked(result.arrays), x, rtol=0, atol=1e-8)


def test_q_fedavg(run):
    """Li et al. 2020, Algorithm 2: with L = 1 / ETA_L and F_k the client's loss,

    ``w - sum_k Delta_k / sum_k h_k``, ``Delta_k = F_k^q L (w - w_k)``,
    ``h_k = q F_k^(q-1) |L (w - w_k)|^2 + L F_k^q``.
    """
    result = run(*DIABETES, "strategy=qfedavg", "strategy.server.q=2", "local.steps=1", "federation.num_rounds=1")
    experiment = result.experiment
    w = initial(experiment)
    deltas, hs = [], []
    for partition_id in range(4):
        x, y = (array.numpy() for array in experiment.data.train_samples(partition_id))
        design = np.column_stack([x, np.ones(len(x))])
        residual = design @ w - y[:, 0]
        loss, gradient = np.mean(residual**2), 2 * design.T @ residual / len(x)  # L (w - w_k) is the gradient
        deltas.append(loss**2 * gradient)
        hs.append(2 * loss * gradient @ gradient + loss**2 / ETA_L)
    np.testing.assert_allclose(stacked(result.arrays), w - sum(deltas) / sum(hs), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("strategy", "combine"),
    [
        ("fedmedian", lambda models: np.median(models, axis=0)),
        ("fedtrimmedavg", lambda models: np.mean(models, axis=0)),  # int(0.2 * 4) = 0 are cut at each end
        ("multikrum", None),
        ("krum", None),
    ],
)
def test_rules_that_do_not_weigh_by_examples(run, strategy, combine):
    options = ["strategy.server.num_nodes_to_select=1"] if strategy == "multikrum" else []
    result = run(*DIABETES, f"strategy={strategy}", *options, "federation.num_rounds=1")
    _, trainings = clients(result.experiment)
    models = np.stack([train(initial(result.experiment)) for train in trainings])
    if combine is None:
        # Krum's score: the squared distances to the n - f - 2 = 2 nearest others, summed; the least wins.
        distances = ((models[:, None] - models[None]) ** 2).sum(-1)
        scores = np.sort(distances, axis=1)[:, 1:3].sum(1)
        expected = models[scores.argmin()]
    else:
        expected = combine(models)
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-8)


def test_trimming_cuts_at_both_ends(run):
    result = run(*DIABETES, "strategy=fedtrimmedavg", "strategy.server.beta=0.25", "federation.num_rounds=1")
    _, trainings = clients(result.experiment)
    models = np.sort(np.stack([train(initial(result.experiment)) for train in trainings]), axis=0)
    np.testing.assert_allclose(stacked(result.arrays), models[1:3].mean(0), rtol=0, atol=1e-8)


def test_bulyan_without_malicious_nodes(run):
    """With f = 0, all n models are selected, and for each coordinate the n values closest to the median: the mean."""
    result = run(*DIABETES, "strategy=bulyan", "federation.num_rounds=1")
    _, trainings = clients(result.experiment)
    models = np.stack([train(initial(result.experiment)) for train in trainings])
    np.testing.assert_allclose(stacked(result.arrays), models.mean(0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mu", [0.1, 2.0])
def test_fedprox_on_heterogeneous_quadratics(run, mu):
    """With tau steps on F_i + mu/2 |x - x_t|^2, a round is ``x_t - sum_i p_i K_i (x_t - c_i)``, where
    ``K_i = [I - (I - eta (H_i + mu I))^tau] (H_i + mu I)^-1 H_i``.
    """
    result = run(*DIABETES, "strategy=fedprox", f"strategy.server.proximal_mu={mu}")
    shares, moves, minimisers = [], [], []
    for partition_id in range(4):
        x, y = (array.numpy() for array in result.experiment.data.train_samples(partition_id))
        design = np.column_stack([x, np.ones(len(x))])
        hessian, identity = 2 * design.T @ design / len(x), np.eye(design.shape[1])
        penalised = hessian + mu * identity
        moved = identity - np.linalg.matrix_power(identity - ETA_L * penalised, TAU)
        shares.append(len(x))
        moves.append(moved @ np.linalg.solve(penalised, hessian))
        minimisers.append(np.linalg.lstsq(design, y[:, 0], rcond=None)[0])
    point = initial(result.experiment)
    for _ in range(3):
        moved = sum(n * k @ (point - c) for n, k, c in zip(shares, moves, minimisers, strict=True))
        point = point - moved / sum(shares)
    np.testing.assert_allclose(stacked(result.arrays), point, rtol=0, atol=1e-10)


@pytest.mark.parametrize("update", [LocalUpdate(), ProximalUpdate()], ids=lambda update: type(update).__name__)
def test_updates_of_a_cohort_are_those_of_its_clients(update):
    """Three clients' gradients in one call of vmap, and one after another."""
    generator = torch.Generator().manual_seed(0)
    model = MLP((4,), 3, widths=[5]).double()
    x = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 6), generator=generator)
    anchor = dict(model.named_parameters())
    fixed = update.begin(anchor, {"proximal-mu": 0.7})
    params = {
        name: torch.stack([p.detach() + torch.randn(p.shape, generator=generator).double() for _ in range(3)])
        for name, p in anchor.items()
    }

    def objective(params, x, y):
        return update.objective(lambda x: functional_call(model, params, (x,)), params, x, y, fixed)

    cohort = vmap(grad(objective))(params, x, y)
    for i in range(3):
        alone = grad(objective)({name: p[i] for name, p in params.items()}, x[i], y[i])
        for name, gradient in alone.items():
            torch.testing.assert_close(cohort[name][i], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedavgm", "strategy.server.server_momentum=0.0"],
        ["strategy=fedprox", "strategy.server.proximal_mu=0"],
    ],
    ids=["FedAvgM without momentum", "FedProx without a penalty"],
)
def test_what_is_fedavg_bit_for_bit(run, overrides):
    fedavg, other = run("federation.num_rounds=3"), run("federation.num_rounds=3", *overrides)
    assert [row["model/sha256"] for row in other.rows] == [row["model/sha256"] for row in fedavg.rows]


@pytest.mark.parametrize("strategy", ["fedadam", "fedadam_reddi", "fedmedian", "krum", "qfedavg", "fedavgm"])
def test_float32_stays_float32(run, strategy):
    result = run(f"strategy={strategy}", "federation.num_rounds=2", "local.epochs=1")
    assert {array.dtype.name for array in result.arrays.values()} == {"float32"}
    assert all(np.isfinite(row["eval/loss"]) for row in result.rows)
