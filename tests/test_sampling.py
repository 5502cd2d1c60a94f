"""Which clients train in a round: the schemes as functions, and their effect on the average."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.federation.sampling import Sampling, fixed, proportional, round_robin, uniform

SIZES = [5, 0, 1, 8, 0, 3, 3]
ELIGIBLE = [0, 2, 3, 5, 6]

DIABETES = [
    "dataset=diabetes",
    "model=logistic",
    "partitioner=linear",
    "dtype=float64",
    "federation.num_supernodes=4",
    "federation.num_rounds=1",
    "local.batch_size=0",
    "local.epochs=null",
    "local.steps=3",
    "optimizer.lr=0.05",
]
FAST_DIGITS = ["model=logistic", "local.epochs=null", "local.steps=2"]


def draws(scheme, num_rounds, *, sizes=SIZES, cohort_size=2, seed=0, **options):
    """Return the cohorts of rounds 1, 2, ..."""

    def with_options(**arguments):
        return scheme(**arguments, **options)

    sampling = Sampling(with_options, sizes, cohort_size, seed, "train-sampling")
    return [list(sampling(server_round)) for server_round in range(1, num_rounds + 1)]


def gradient_descent(experiment, partition_id):
    """Return a client's model after its three full-batch steps from the initial one."""
    x, y = (array.numpy() for array in experiment.data.train_samples(partition_id))
    design, w = np.column_stack([x, np.ones(len(x))]), stacked(values(experiment.initial_arrays))
    for _ in range(3):
        w = w - 0.05 * 2 / len(y) * design.T @ (design @ w - y[:, 0])
    return w


def values(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


def stacked(arrays):
    """Return the model's weights and bias as one vector."""
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.append(weight.ravel(), bias)


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=12), cohort_size=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_uniform_selects_no_client_twice_and_none_without_data(sizes, cohort_size, seed):
    drawn = draws(uniform, 1, sizes=sizes, cohort_size=cohort_size, seed=seed)[0]
    eligible = {i for i, size in enumerate(sizes) if size}
    assert len(set(drawn)) == len(drawn) == min(cohort_size, len(eligible))
    assert set(drawn) <= eligible


def test_uniform_selects_all_clients_with_data_if_they_are_too_few():
    assert sorted(draws(uniform, 1, cohort_size=6)[0]) == ELIGIBLE


def test_uniform_selects_every_client_and_every_pair_equally_often():
    """Two of five: a client in 2/5 of the rounds, each of the ten pairs in 1/10, for any sizes."""
    n = 3000
    rounds = draws(uniform, n)
    counts = Counter(i for drawn in rounds for i in drawn)
    assert set(counts) == set(ELIGIBLE)
    # The inclusions have variance n p (1 - p); of five of them, none is beyond 4.5 standard deviations.
    assert all(abs(counts[i] - n * 0.4) < 4.5 * math.sqrt(n * 0.4 * 0.6) for i in ELIGIBLE)
    pairs = Counter(frozenset(drawn) for drawn in rounds)
    assert len(pairs) == math.comb(5, 2)
    chi_square = sum((count - n / 10) ** 2 / (n / 10) for count in pairs.values())
    assert chi_square < 33.7  # nine degrees of freedom, p = 1e-4
    assert chi_square > 0.3  # and not a rotation that only looks random


def test_proportional_selects_in_proportion_to_the_examples():
    n, cohort_size = 1500, 4
    counts = Counter(i for drawn in draws(proportional, n, cohort_size=cohort_size) for i in drawn)
    assert set(counts) == set(ELIGIBLE)
    assert counts.total() == n * cohort_size
    expected = {i: n * cohort_size * SIZES[i] / 20 for i in ELIGIBLE}
    assert sum((counts[i] - e) ** 2 / e for i, e in expected.items()) < 23.5  # four degrees of freedom, p = 1e-4


def test_proportional_selects_with_replacement():
    """Two draws from two clients with equal data are equal half of the time: 500 of 1000, deviation 15.8."""
    same = sum(a == b for a, b in draws(proportional, 1000, sizes=[7, 7]))
    assert abs(same - 500) < 4.5 * 15.8


def test_proportional_fills_the_cohort_with_the_only_client_with_data():
    assert draws(proportional, 1, sizes=[0, 6, 0], cohort_size=3) == [[1, 1, 1]]


def test_fixed_is_the_same_in_every_round_for_any_cohort_size():
    assert draws(fixed, 4, partition_ids=[3, 0, 5]) == [[3, 0, 5]] * 4


@pytest.mark.parametrize(("partition_ids", "wrong"), [([0, 7], "[7]"), ([1, 3, -1], "[1, -1]")])
def test_missing_and_empty_clients_are_rejected_from_any_scheme(partition_ids, wrong):
    sampling = Sampling(lambda **_: partition_ids, SIZES, 2, 0, "train-sampling")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole text is compared)
        sampling(1)
    assert str(error.value) == f"partition ids must be from 0 to 6 and hold training data, got {wrong}"


def test_a_scheme_that_selects_nobody_is_rejected(compose, tmp_path, monkeypatch):
    (tmp_path / "nobody_sampling.py").write_text("def late(server_round, **_): return [0] * (server_round < 3)")
    (tmp_path / "sampling").mkdir()
    (tmp_path / "sampling" / "late.yaml").write_text("_target_: nobody_sampling.late\n")
    monkeypatch.syspath_prepend(tmp_path)
    experiment = Experiment(*compose("sampling=late", "tracker=none", config_dir=tmp_path))
    prepare(experiment)
    with pytest.raises(InputError) as error:
        experiment.sampling_sha256()
    assert str(error.value) == (
        "sampling=late: no client trains in round 3; the scheme must return at least one partition id"
    )


def test_round_robin_goes_round_by_hand():
    assert draws(round_robin, 5) == [[0, 2], [3, 5], [6, 0], [2, 3], [5, 6]]


@given(
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=9).filter(any),
    cohort_size=st.integers(1, 9),
    cycles=st.integers(1, 3),
)
def test_round_robin_selects_each_client_once_per_cycle(sizes, cohort_size, cycles):
    """Consecutive cohorts repeat the partition order: each cycle is that order."""
    eligible = [i for i, size in enumerate(sizes) if size]
    size = min(cohort_size, len(eligible))
    num_rounds = math.lcm(size, len(eligible)) // size * cycles
    rounds = draws(round_robin, num_rounds, sizes=sizes, cohort_size=cohort_size)
    assert all(len(drawn) == len(set(drawn)) == size for drawn in rounds)
    if size < len(eligible):
        assert [i for drawn in rounds for i in drawn] == eligible * (num_rounds * size // len(eligible))
    else:
        assert all(sorted(drawn) == eligible for drawn in rounds)


@pytest.mark.parametrize("scheme", [uniform, proportional])
def test_a_cohort_follows_from_seed_purpose_and_round(scheme):
    def sequence(seed=0, purpose="train-sampling", rounds=range(1, 11)):
        sampling = Sampling(scheme, [10] * 20, 5, seed, purpose)
        return {server_round: list(sampling(server_round)) for server_round in rounds}

    forwards = sequence()
    assert sequence(rounds=range(10, 0, -1)) == forwards  # earlier cohorts do not matter
    assert len({tuple(drawn) for drawn in forwards.values()}) > 8
    for other in (sequence(seed=1), sequence(purpose="evaluate-sampling")):
        assert sum(other[r] == forwards[r] for r in forwards) < 3


def seed_and_draw(run, cohort_size, counts):
    """Return a seed for which round 1's cohort of the diabetes clients has these counts, and that cohort."""
    sizes = [len(rows) for rows in run(*DIABETES).experiment.data.train]  # the same for every seed
    for seed in range(1000):
        drawn = Sampling(proportional, sizes, cohort_size, seed, "train-sampling")(1)
        if sorted(Counter(drawn).values()) == counts:
            return seed, drawn
    raise AssertionError("no such draw")


def test_a_client_selected_twice_counts_twice(run):
    """Scheme I of Li et al. 2020: the plain mean over the draws, with repeated clients."""
    seed, drawn = seed_and_draw(run, 4, [1, 1, 2])
    result = run(*DIABETES, "sampling=proportional", "federation.fraction_train=1", f"seed={seed}")
    assert result.experiment.config.strategy["weighted_by"] == "uniform"
    models = [gradient_descent(result.experiment, i) for i in range(4)]
    expected, once = (np.mean([models[i] for i in ids], axis=0) for ids in (drawn, set(drawn)))
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-10)
    assert np.abs(expected - once).max() > 1e-3  # otherwise the count would have no effect
    assert result.rows[0]["clients/sampled"] == 3
    assert result.rows[0]["local/steps"] == 3 * 3  # a client that counts twice trains once


def test_fixed_trains_exactly_those_clients(run):
    result = run(
        *DIABETES,
        "sampling=fixed",
        "sampling.partition_ids=[0,3]",
        "federation.num_rounds=1",
        "validation.fraction=0.3",
    )
    assert result.rows[0]["clients/sampled"] == 2
    experiment = result.experiment
    sizes = [len(experiment.data.train[i]) for i in (0, 3)]
    expected = np.average([gradient_descent(experiment, i) for i in (0, 3)], axis=0, weights=sizes)
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-10)


def test_round_robin_trains_one_cohort_after_another(run):
    """Five clients, cohorts of two: partitions 0 and 1, then 2 and 3. A client keeps state only if it trained."""
    options = ["sampling=round_robin", "strategy=local_only", "federation.num_supernodes=5"]
    for num_rounds, expected in ((1, {0, 1}), (2, {0, 1, 2, 3}), (3, {0, 1, 2, 3, 4})):
        result = run(*FAST_DIGITS, *options, f"federation.num_rounds={num_rounds}", "federation.fraction_train=0.4")
        assert {node_id - 2 for node_id in result.experiment.grid.states} == expected


def test_a_missing_partition_is_rejected_in_one_line(compose):
    experiment = Experiment(*compose("sampling=fixed", "sampling.partition_ids=[99]", "tracker=none"))
    with pytest.raises(InputError) as error:
        prepare(experiment)
    assert str(error.value) == "sampling=fixed: partition ids must be from 0 to 9 and hold training data, got [99]"


def test_a_users_own_scheme_is_a_function_and_a_yaml(run, tmp_path, monkeypatch):
    (tmp_path / "my_sampling.py").write_text(
        "def largest(*, sizes, eligible, cohort_size, server_round, seed, among):\n"
        "    return sorted(range(len(sizes)), key=lambda i: -sizes[i])[:among][:cohort_size]\n"
    )
    (tmp_path / "sampling").mkdir()
    (tmp_path / "sampling" / "mine.yaml").write_text("# The largest\n_target_: my_sampling.largest\namong: 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run(*DIABETES, "sampling=mine", "federation.fraction_train=1", config_dir=tmp_path)
    assert result.rows[0]["clients/sampled"] == 2
    # The linear partitioner's last two are the largest.
    sizes = [len(result.experiment.data.train[i]) for i in (2, 3)]
    expected = np.average([gradient_descent(result.experiment, i) for i in (2, 3)], axis=0, weights=sizes)
    np.testing.assert_allclose(stacked(result.arrays), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "fednova", "fedmedian"])
def test_strategies_accept_duplicate_replies(run, strategy):
    """In each round of three draws, a client is selected twice with probability 7/9 or more: 1 - 3!/3^3."""
    result = run(
        *FAST_DIGITS,
        "sampling=proportional",
        f"strategy={strategy}",
        "federation.num_supernodes=3",
        "federation.fraction_train=1",
        "federation.num_rounds=5",
    )
    assert min(row["clients/sampled"] for row in result.rows) < 3
    assert all(np.isfinite(array).all() for array in result.arrays.values())
    assert result.rows[-1]["eval/loss"] < result.rows[0]["eval/loss"]


def test_a_median_counts_a_client_as_often_as_it_was_selected(run):
    """For [a, a, b], the median is a's model; for [a, b] it would be their mean."""
    seed, drawn = seed_and_draw(run, 3, [1, 2])
    a = Counter(drawn).most_common(1)[0][0]
    result = run(
        *DIABETES, "sampling=proportional", "strategy=fedmedian", "federation.fraction_train=0.75", f"seed={seed}"
    )
    np.testing.assert_allclose(stacked(result.arrays), gradient_descent(result.experiment, a), rtol=0, atol=1e-10)


def test_a_control_variate_counts_a_client_selected_twice_once(run):
    """SCAFFOLD's c is the mean of the clients' variates, however often each client was selected."""
    result = run(
        *DIABETES,
        "sampling=proportional",
        "strategy=scaffold",
        "federation.fraction_train=1",
        "federation.num_rounds=8",
    )
    assert min(row["clients/sampled"] for row in result.rows) < 4
    experiment = result.experiment
    kept = [state["kept/control-variate"] for state in experiment.grid.states.values()]
    mean = (
        sum(stacked(values(variate)) for variate in kept) / 4
    )  # uniform; a client that was never selected counts as zeros
    c = experiment.strategy.variate.mean(experiment.initial_arrays, 4)
    np.testing.assert_allclose(stacked(c), mean, rtol=0, atol=1e-10)
