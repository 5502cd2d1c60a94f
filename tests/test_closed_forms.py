"""Strategies against mathematics, in float64, through the real apps and grid.

Linear regression with the mean squared error is a quadratic: with rows (x, 1) in X_i, the client's loss has Hessian
``H_i = 2 X_i' X_i / n_i`` and minimiser ``c_i = lstsq(X_i, y_i)``. With ``K_i = I - (I - eta H_i)^tau`` after tau
full-batch steps, FedAvg's iterates are ``x_{t+1} = x_t - sum_i p_i K_i (x_t - c_i)``, and their fixed point is
``(sum p_i K_i)^-1 sum p_i K_i c_i``.
"""

import textwrap

import numpy as np
import pytest

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
]


def client_problems(experiment):
    """Return each client's design matrix with a column of ones, and its targets."""
    for partition_id in range(experiment.data.num_partitions):
        x, y = (array.numpy() for array in experiment.data.train_samples(partition_id))
        yield np.column_stack([x, np.ones(len(x))]), y[:, 0]


def quadratics(experiment):
    """Return the clients' shares of the examples, Hessians and minimisers."""
    problems = list(client_problems(experiment))
    sizes = np.array([len(y) for _, y in problems])
    hessians = [2 * design.T @ design / len(y) for design, y in problems]
    minimisers = [np.linalg.lstsq(design, y, rcond=None)[0] for design, y in problems]
    return sizes / sizes.sum(), hessians, minimisers


def moved(hessian, eta, tau):
    """Return K: how far tau full-batch steps of size eta go towards the minimiser."""
    identity = np.eye(len(hessian))
    return identity - np.linalg.matrix_power(identity - eta * hessian, tau)


def stacked(arrays):
    """Return the model's weights and bias as one vector."""
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.append(weight.ravel(), bias)


def initial(experiment):
    return stacked({name: array.numpy() for name, array in experiment.initial_arrays.items()})


def test_one_full_batch_step_of_everyone_is_central_gradient_descent(run):
    result = run(*DIABETES, "local.steps=1", "optimizer.lr=0.05", "federation.num_rounds=30")
    problems = list(client_problems(result.experiment))
    sizes = [len(y) for _, y in problems]
    assert len(set(sizes)) == 4  # unequal, or the weighting would not show
    design, targets = np.concatenate([a for a, _ in problems]), np.concatenate([y for _, y in problems])

    w = initial(result.experiment)
    for _ in range(30):
        w = w - 0.05 * 2 / len(targets) * design.T @ (design @ w - targets)
    np.testing.assert_allclose(stacked(result.arrays), w, rtol=0, atol=1e-10)


def test_momentum_that_starts_empty_does_not_change_one_step(run):
    plain = run(*DIABETES, "local.steps=1", "optimizer.lr=0.05", "federation.num_rounds=3")
    other = run(*DIABETES, "local.steps=1", "optimizer.lr=0.05", "federation.num_rounds=3", "optimizer.momentum=0.9")
    np.testing.assert_array_equal(stacked(plain.arrays), stacked(other.arrays))


@pytest.mark.parametrize("tau", [2, 7])
def test_trajectory_on_heterogeneous_quadratics(run, tau):
    eta, rounds = 0.05, 12
    per_round = []
    result = run(*DIABETES, f"local.steps={tau}", f"optimizer.lr={eta}", f"federation.num_rounds={rounds}")
    shares, hessians, minimisers = quadratics(result.experiment)
    moves = [moved(hessian, eta, tau) for hessian in hessians]

    x = initial(result.experiment)
    for _ in range(rounds):
        step = -sum(p * k @ (x - c) for p, k, c in zip(shares, moves, minimisers, strict=True))
        per_round.append(np.linalg.norm(step))
        x = x + step
    np.testing.assert_allclose(stacked(result.arrays), x, rtol=0, atol=1e-10)
    np.testing.assert_allclose([row["update/norm"] for row in result.rows], per_round, rtol=0, atol=1e-10)


# H = (1, 4), c = (-1, 1), p = 1/2, eta = 0.1: the fixed points as in published work's closed form, computed by hand
# from K_i = 1 - (1 - eta H_i)^tau. For tau = 1: (0.1 (-1) + 0.4 (1)) / (0.1 + 0.4) = 0.6, the true optimum.
@pytest.mark.parametrize(("tau", "fixed_point"), [(1, 0.6), (2, 0.5421686747), (5, 0.3850046931), (20, 0.0647045082)])
def test_fixed_point_drifts_from_the_optimum_with_more_local_steps(run, tmp_path, monkeypatch, tau, fixed_point):
    """One sample a client: F_i = (x w - y)^2 has H = 2 x^2 and c = y / x."""
    (tmp_path / "scalar_quadratics.py").write_text(
        textwrap.dedent(
            """
            import numpy as np, torch
            from fedresearch.data.source import Samples, Source

            def load():
                x = torch.tensor([[0.5**0.5], [2.0**0.5]], dtype=torch.float64)
                samples = Samples(x, x * torch.tensor([[-1.0], [1.0]]), np.array([0, 1]))
                return Source(samples, samples)

            class Scalar(torch.nn.Module):
                def __init__(self, input_shape, num_classes):
                    super().__init__()
                    self.w = torch.nn.Parameter(torch.zeros(1))

                def forward(self, x):
                    return x * self.w
            """
        )
    )
    for group, text in {
        "dataset": "_target_: scalar_quadratics.load\n"
        "declares: {input: vector, input_shape: [1], num_classes: 1, columns: [natural_id]}",
        "model": "_target_: scalar_quadratics.Scalar",
    }.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "scalar.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    result = run(
        "dataset=scalar",
        "model=scalar",
        "partitioner=natural_id",
        "dtype=float64",
        "validation.fraction=0",
        "federation.fraction_evaluate=0",
        "federation.fraction_train=1",
        "federation.num_rounds=150",
        "local.batch_size=0",
        "local.epochs=null",
        f"local.steps={tau}",
        "optimizer.lr=0.1",
        config_dir=tmp_path,
    )
    assert result.arrays["w"].item() == pytest.approx(fixed_point, abs=5e-11)


THREE_ROUNDS = [*DIABETES, "federation.num_rounds=3", "local.steps=3", "optimizer.lr=0.05"]
ETA_L, TAU = 0.05, 3


def clients(experiment):
    """Return each client's share of the examples, and its local training as a function of the global model."""
    shares, hessians, minimisers = quadratics(experiment)
    moves = [moved(hessian, ETA_L, TAU) for hessian in hessians]
    return shares, [lambda w, k=k, c=c: w - k @ (w - c) for k, c in zip(moves, minimisers, strict=True)]


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
    result = run(*THREE_ROUNDS, f"strategy={strategy}")
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
    result = run(*THREE_ROUNDS, "strategy=qfedavg", "strategy.server.q=2", "local.steps=1", "federation.num_rounds=1")
    experiment = result.experiment
    w = initial(experiment)
    deltas, hs = [], []
    for design, y in client_problems(experiment):
        residual = design @ w - y
        loss, gradient = np.mean(residual**2), 2 * design.T @ residual / len(y)  # L (w - w_k) is the gradient
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
    result = run(*THREE_ROUNDS, f"strategy={strategy}", *options, "federation.num_rounds=1")
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
    result = run(*THREE_ROUNDS, "strategy=fedtrimmedavg", "strategy.server.beta=0.25", "federation.num_rounds=1")
    _, trainings = clients(result.experiment)
    models = np.sort(np.stack([train(initial(result.experiment)) for train in trainings]), axis=0)
    np.testing.assert_allclose(stacked(result.arrays), models[1:3].mean(0), rtol=0, atol=1e-8)


def test_bulyan_without_malicious_nodes(run):
    """With f = 0, all n models are selected, and for each coordinate the n values closest to the median: the mean."""
    result = run(*THREE_ROUNDS, "strategy=bulyan", "federation.num_rounds=1")
    _, trainings = clients(result.experiment)
    models = np.stack([train(initial(result.experiment)) for train in trainings])
    np.testing.assert_allclose(stacked(result.arrays), models.mean(0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mu", [0.1, 2.0])
def test_fedprox_on_heterogeneous_quadratics(run, mu):
    """With tau steps on F_i + mu/2 |x - x_t|^2, a round is ``x_t - sum_i p_i K_i (x_t - c_i)``, where
    ``K_i = [I - (I - eta (H_i + mu I))^tau] (H_i + mu I)^-1 H_i``.
    """
    result = run(*THREE_ROUNDS, "strategy=fedprox", f"strategy.server.proximal_mu={mu}")
    shares, hessians, minimisers = quadratics(result.experiment)
    penalised = [hessian + mu * np.eye(len(hessian)) for hessian in hessians]
    moves = [moved(h_mu, ETA_L, TAU) @ np.linalg.solve(h_mu, h) for h_mu, h in zip(penalised, hessians, strict=True)]
    point = initial(result.experiment)
    for _ in range(3):
        point = point - sum(p * k @ (point - c) for p, k, c in zip(shares, moves, minimisers, strict=True))
    np.testing.assert_allclose(stacked(result.arrays), point, rtol=0, atol=1e-10)
