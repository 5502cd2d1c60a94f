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


@pytest.fixture
def scalars(tmp_path, monkeypatch):
    """Make ``dataset=scalar model=scalar``: one weight w, and clients that hold copies of one sample each.

    With n_i copies of the sample (x_i, x_i c_i), x_i^2 = H_i / 2, client i's loss is H_i/2 (w - c_i)^2, and an epoch of
    batches of one sample is n_i steps on its full gradient. H = (1, 4), c = (-1, 1); dataset.copies gives n_i.
    """
    (tmp_path / "scalar_quadratics.py").write_text(
        textwrap.dedent(
            """
            import numpy as np, torch
            from fedresearch.data.source import Samples, Source

            def load(copies):
                x = torch.tensor([[0.5**0.5], [2.0**0.5]], dtype=torch.float64)
                y = x * torch.tensor([[-1.0], [1.0]])
                rows = np.repeat([0, 1], copies)
                samples = Samples(x[rows], y[rows], rows)
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
        "dataset": "_target_: scalar_quadratics.load\ncopies: [1, 1]\n"
        "declares: {input: vector, input_shape: [1], num_classes: 1, columns: [natural_id]}",
        "model": "_target_: scalar_quadratics.Scalar",
    }.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "scalar.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


SCALARS = [
    "dataset=scalar",
    "model=scalar",
    "partitioner=natural_id",
    "dtype=float64",
    "validation.fraction=0",
    "federation.num_supernodes=null",
    "federation.fraction_evaluate=0",
    "federation.fraction_train=1",
    "optimizer.lr=0.1",
]


# K_i = 1 - (1 - eta H_i)^tau by hand, eta = 0.1. For tau = 1: (0.1 (-1) + 0.4 (1)) / (0.1 + 0.4) = 0.6, the optimum.
@pytest.mark.parametrize(("tau", "fixed_point"), [(1, 0.6), (2, 0.5421686747), (5, 0.3850046931), (20, 0.0647045082)])
def test_fixed_point_drifts_from_the_optimum_with_more_local_steps(run, scalars, tau, fixed_point):
    steps = ["local.batch_size=0", "local.epochs=null", f"local.steps={tau}"]
    result = run(*SCALARS, *steps, "federation.num_rounds=150", config_dir=scalars)
    assert result.arrays["w"].item() == pytest.approx(fixed_point, abs=5e-11)


# Unequal steps: tau = (2, 5), so that p = (2/7, 5/7), or (1/2, 1/2) where clients are weighed equally.
H, C, TAUS, STEP = np.array([1.0, 4.0]), np.array([-1.0, 1.0]), np.array([2, 5]), 0.1
SHARES, EQUAL = TAUS / 7, np.array([0.5, 0.5])


def balance(weights):
    """Return where the clients' pulls towards their minimisers, of these weights, cancel."""
    return (weights * C).sum() / weights.sum()


def pull(mu=0.0, rho=0.0):
    """Return, for each client, what share of its way to c_i it goes in its steps, and what its gradients weigh.

    Both from the local recurrence itself, step by step: v = rho v + g, y = y - eta v on F_i + mu/2 |y - x|^2.
    """

    def displacement(gradient, tau):
        moved = velocity = 0.0
        for _ in range(tau):
            velocity = rho * velocity + gradient(moved)
            moved += STEP * velocity
        return moved

    ways = [displacement(lambda d, h=h: h * (1 - d) - mu * d, tau) for h, tau in zip(H, TAUS, strict=True)]
    weights = [displacement(lambda d: 1 - mu * d, tau) / STEP for tau in TAUS]
    return np.array(ways), np.array(weights)


OPTIMUM = balance(SHARES * H)
FIXED_POINTS = {
    "strategy=fedavg": balance(SHARES * pull()[0]),
    "strategy=fedavg strategy.weighted_by=uniform": balance(EQUAL * pull()[0]),
    "strategy=fedprox strategy.server.proximal_mu=0.5": balance(SHARES * pull(mu=0.5)[0]),
    "strategy=fednova": balance(SHARES * pull()[0] / TAUS),
    "strategy=fednova strategy.weighted_by=uniform": balance(EQUAL * pull()[0] / TAUS),
    "strategy=fednova optimizer.momentum=0.5": balance(SHARES * pull(rho=0.5)[0] / pull(rho=0.5)[1]),
    "strategy=fednova strategy.server.proximal_mu=0.5": balance(SHARES * pull(mu=0.5)[0] / pull(mu=0.5)[1]),
    "strategy=scaffold": OPTIMUM,
    "strategy=scaffold strategy.client.option=I": OPTIMUM,
    "strategy=scaffold optimizer.momentum=0.5": OPTIMUM,
    "strategy=scaffold strategy.server.server_learning_rate=0.5": OPTIMUM,
    "strategy=scaffold strategy.weighted_by=uniform": balance(EQUAL * H),
    "strategy=feddyn strategy.server.alpha=0.5": balance(EQUAL * H),
    "strategy=feddyn strategy.server.alpha=0.5 strategy.weighted_by=num-examples": OPTIMUM,
}


def test_the_fixed_points_tell_the_strategies_apart():
    """FedNova has a bias of its own at a finite step size; with p_i ~ tau_i its point is unweighted FedAvg's."""
    assert len({round(point, 6) for point in FIXED_POINTS.values()}) == len(FIXED_POINTS) - 6
    assert abs(FIXED_POINTS["strategy=fednova"] - OPTIMUM) > 0.01


@pytest.mark.parametrize("overrides", FIXED_POINTS)
def test_fixed_points_with_unequal_local_steps(run, scalars, overrides):
    steps = ["dataset.copies=[2,5]", "local.batch_size=1", "local.epochs=1", "federation.num_rounds=180"]
    result = run(*SCALARS, *steps, *overrides.split(), config_dir=scalars)
    assert [row["local/steps"] for row in result.rows] == [7] * 180
    assert result.arrays["w"].item() == pytest.approx(FIXED_POINTS[overrides], abs=1e-8)


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


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffolds_control_variates(run, option):
    """Five rounds, two of four clients each: every client's variate, the server's and the model, by the algorithm."""
    result = run(
        *DIABETES,
        "strategy=scaffold",
        f"strategy.client.option={option}",
        "strategy.server.server_learning_rate=0.7",
        "strategy.weighted_by=uniform",
        "federation.num_rounds=5",
        "federation.fraction_train=0.5",
        f"local.steps={TAU}",
        f"optimizer.lr={ETA_L}",
    )
    experiment = result.experiment
    _, hessians, minimisers = quadratics(experiment)
    x = initial(experiment)
    c, c_i = np.zeros_like(x), [np.zeros_like(x) for _ in range(4)]
    drawn = [list(experiment.train_cohort(server_round)) for server_round in range(1, 6)]
    assert len({tuple(sorted(cohort)) for cohort in drawn}) > 1
    for cohort in drawn:
        models, changes = [], []
        for i in cohort:
            y = x
            for _ in range(TAU):
                y = y - ETA_L * (hessians[i] @ (y - minimisers[i]) - c_i[i] + c)
            new = hessians[i] @ (x - minimisers[i]) if option == "I" else c_i[i] - c + (x - y) / (TAU * ETA_L)
            models.append(y)
            changes.append(new - c_i[i])
            c_i[i] = new
        x = x + 0.7 * (np.mean(models, axis=0) - x)
        c = c + 2 / 4 * np.mean(changes, axis=0)

    kept = [
        {name: array.numpy() for name, array in state["kept/control-variate"].items()}
        for _, state in sorted(experiment.grid.states.items())
    ]
    assert len(kept) == 4
    np.testing.assert_allclose([stacked(variate) for variate in kept], c_i, rtol=0, atol=1e-10)
    server = experiment.strategy.variate.mean(experiment.initial_arrays, num_clients=4)
    np.testing.assert_allclose(stacked(server), c, rtol=0, atol=1e-10)
    np.testing.assert_allclose(stacked(result.arrays), x, rtol=0, atol=1e-10)


def test_feddyn_with_some_of_the_clients(run):
    """Acar et al. 2021, Algorithm 1, with three gradient steps for the argmin and two of four clients a round."""
    alpha = 0.3
    result = run(
        *DIABETES,
        "strategy=feddyn",
        f"strategy.server.alpha={alpha}",
        "federation.num_rounds=5",
        "federation.fraction_train=0.5",
        f"local.steps={TAU}",
        f"optimizer.lr={ETA_L}",
    )
    _, hessians, minimisers = quadratics(result.experiment)
    x = initial(result.experiment)
    h, g = np.zeros_like(x), [np.zeros_like(x) for _ in range(4)]
    for server_round in range(1, 6):
        models = []
        for i in result.experiment.train_cohort(server_round):
            y = x
            for _ in range(TAU):
                y = y - ETA_L * (hessians[i] @ (y - minimisers[i]) - g[i] + alpha * (y - x))
            g[i] = g[i] - alpha * (y - x)
            models.append(y)
        h = h - alpha / 4 * sum(y - x for y in models)
        x = np.mean(models, axis=0) - h / alpha
    np.testing.assert_allclose(stacked(result.arrays), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mu", "momentum"), [(0.0, 0.0), (0.0, 0.9), (0.4, 0.0)])
def test_fednova_round_by_round(run, mu, momentum):
    """Clients of 30 to 118 samples in batches of 20 take 2 to 6 steps; here with their gradients followed in NumPy."""
    result = run(
        *[override for override in DIABETES if not override.startswith("local.")],
        "strategy=fednova",
        f"strategy.server.proximal_mu={mu}",
        f"optimizer.momentum={momentum}",
        "local.epochs=1",
        "local.batch_size=20",
        "optimizer.lr=0.05",
        "federation.num_rounds=2",
    )
    import torch

    from fedresearch.seeding import derive_seed

    problems = list(client_problems(result.experiment))
    x, all_taus = initial(result.experiment), []
    for server_round in (1, 2):
        updates, weights, taus = [], [], []
        for i, (design, targets) in enumerate(problems):
            order = torch.Generator().manual_seed(derive_seed(0, "batches", server_round, i))
            y, velocity, accumulated, weight_velocity = x, 0.0, 0.0, 0.0
            batches = torch.randperm(len(targets), generator=order).split(20)
            for batch in batches:
                a, b = design[batch.numpy()], targets[batch.numpy()]
                velocity = momentum * velocity + 2 * a.T @ (a @ y - b) / len(b) + mu * (y - x)
                y = y - 0.05 * velocity
                # the paper's recursions for |a_i|_1: momentum's counter, and the proximal term's discount
                weight_velocity = momentum * weight_velocity + 1
                accumulated = accumulated * (1 - 0.05 * mu) + weight_velocity
            updates.append(x - y)
            weights.append(accumulated)
            taus.append(len(batches))
        p = np.array([len(targets) for _, targets in problems]) / sum(len(targets) for _, targets in problems)
        tau_eff = p @ np.array(taus if mu else weights)
        x = x - tau_eff * sum(
            share * update / weight for share, update, weight in zip(p, updates, weights, strict=True)
        )
        all_taus.append(taus)
    assert len(set(all_taus[0])) > 1
    np.testing.assert_allclose(stacked(result.arrays), x, rtol=0, atol=1e-10)
