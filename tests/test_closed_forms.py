"""FedAvg against mathematics, in float64, through the real apps and grid.

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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_that_starts_empty_does_not_change_one_step(run, momentum):
    plain = run(*DIABETES, "local.steps=1", "optimizer.lr=0.05", "federation.num_rounds=3")
    other = run(
        *DIABETES, "local.steps=1", "optimizer.lr=0.05", "federation.num_rounds=3", f"optimizer.momentum={momentum}"
    )
    np.testing.assert_array_equal(stacked(plain.arrays), stacked(other.arrays))


@pytest.mark.parametrize("tau", [2, 7])
def test_trajectory_on_heterogeneous_quadratics(run, tau):
    eta, rounds = 0.05, 12
    per_round = []
    result = run(*DIABETES, f"local.steps={tau}", f"optimizer.lr={eta}", f"federation.num_rounds={rounds}")
    problems = list(client_problems(result.experiment))
    total = sum(len(y) for _, y in problems)

    identity = np.eye(problems[0][0].shape[1])
    shares = [len(y) / total for _, y in problems]
    hessians = [2 * a.T @ a / len(y) for a, y in problems]
    minimisers = [np.linalg.lstsq(a, y, rcond=None)[0] for a, y in problems]
    moves = [identity - np.linalg.matrix_power(identity - eta * h, tau) for h in hessians]

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
