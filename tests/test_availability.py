"""Clients that are away or do a part of their work: the functions, the sampling around them, and whole runs."""

import functools
import math
import textwrap
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.federation.availability import Availability, bernoulli, stragglers
from fedresearch.federation.sampling import Sampling, fixed, proportional, round_robin, uniform
from fedresearch.local.train import LocalWork
from fedresearch.seeding import derive_seed
from tests.test_sampling import DIABETES, stacked

SMALL = ["model=logistic", "federation.num_supernodes=6", "local.epochs=2", "local.batch_size=20"]


def shares_of(function, clients=2000, rounds=1, seed=0, **options):
    availability = Availability(functools.partial(function, **options), seed)
    return [availability(r, i) for r in range(1, rounds + 1) for i in range(clients)]


def test_bernoulli_clients_are_there_with_the_probability():
    shares = shares_of(bernoulli, probability=0.3)
    assert set(shares) == {0, 1}
    assert abs(sum(shares) - 600) < 4.5 * math.sqrt(2000 * 0.3 * 0.7)
    assert set(shares_of(bernoulli, probability=0)) == {0}
    assert set(shares_of(bernoulli, probability=1)) == {1}


def test_stragglers_do_any_number_of_epochs_equally_often():
    """Of 2000, half do all of 4 epochs and the others 1 to 4: each of 1 to 3 is 2000 / 8, and 4 is 2000 * 5 / 8."""
    counts = Counter(shares_of(stragglers, fraction=0.5, epochs=4))
    expected = {0.25: 250, 0.5: 250, 0.75: 250, 1.0: 1250}
    assert counts.keys() == expected.keys()
    assert sum((counts[share] - n) ** 2 / n for share, n in expected.items()) < 21.1  # 3 degrees of freedom, p = 1e-4


def test_stragglers_do_any_number_of_steps_equally_often():
    shares = shares_of(stragglers, fraction=1.0, epochs=None)
    counts = Counter(steps(share, steps=5) for share in shares)
    assert sum((counts[k] - 400) ** 2 / 400 for k in range(1, 6)) < 23.5  # 4 degrees of freedom, p = 1e-4


def test_shares_follow_from_seed_round_and_partition():
    draws = shares_of(bernoulli, clients=200, rounds=2, probability=0.5)
    assert draws == shares_of(bernoulli, clients=200, rounds=2, probability=0.5)
    others = draws[:200], draws[200:], shares_of(bernoulli, clients=200, seed=1, probability=0.5)
    for i, j in ((0, 1), (0, 2), (1, 2)):  # they agree as two coins do
        assert abs(sum(a == b for a, b in zip(others[i], others[j], strict=True)) - 100) < 4.5 * math.sqrt(50)


def batches(share, epochs=None, steps=None, num_examples=7, batch_size=2):
    x = torch.arange(num_examples)
    work = LocalWork(epochs, steps, batch_size)
    return [b.tolist() for b, _ in work.batches(x, x, torch.Generator().manual_seed(0), share=share)]


def steps(share, **work):
    return len(batches(share, **work))


@given(
    share=st.fractions(0, 1),
    epochs=st.integers(1, 4),
    num_examples=st.integers(1, 12),
    batch_size=st.integers(0, 5),
)
def test_a_share_of_the_work_is_its_first_batches(share, epochs, num_examples, batch_size):
    data = {"num_examples": num_examples, "batch_size": batch_size}
    whole = batches(1.0, epochs=epochs, **data)
    assert batches(float(share), epochs=epochs, **data) == whole[: max(1, math.ceil(share * len(whole)))]
    assert batches(float(share), steps=len(whole), **data) == whole[: max(1, math.ceil(share * len(whole)))]


@given(epochs=st.integers(1, 60), done=st.integers(1, 60), num_examples=st.integers(1, 60))
def test_a_number_of_epochs_is_whole_in_floats_too(epochs, done, num_examples):
    done = min(done, epochs)
    assert steps(done / epochs, epochs=epochs, num_examples=num_examples, batch_size=1) == done * num_examples


@pytest.mark.parametrize("scheme", [uniform, proportional, round_robin, functools.partial(fixed, partition_ids=[0, 2])])
@given(
    away=st.sets(st.tuples(st.integers(1, 4), st.integers(0, 5))),
    cohort_size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_scheme_draws_from_those_who_are_there(scheme, away, cohort_size, seed):
    def share(*, partition_id, server_round, seed):
        return float((server_round, partition_id) not in away)

    sizes = [3, 0, 2, 5, 1, 1]
    sampling = Sampling(scheme, sizes, cohort_size, seed, "train-sampling", Availability(functools.partial(share), 0))
    for server_round in range(1, 5):
        there = [i for i in (0, 2, 3, 4, 5) if (server_round, i) not in away]
        drawn = sampling(server_round)
        assert sampling.eligible(server_round) == there
        assert {*drawn} <= {*there}
        if scheme in (uniform, round_robin):
            assert len({*drawn}) == len(drawn) == min(cohort_size, len(there))
        elif scheme is proportional:
            assert len(drawn) == (cohort_size if there else 0)
        else:
            assert drawn == [i for i in (0, 2) if i in there]


def test_the_one_client_of_a_centralised_run_is_away_in_some_rounds_too(compose):
    overrides = ["strategy=centralised", "availability=bernoulli", "availability.probability=0.5"]
    experiment = Experiment(*compose(*overrides, *SMALL))
    assert {len(experiment.sampled(server_round)) for server_round in range(1, 41)} == {0, 1}


def test_proportional_draws_in_proportion_to_those_who_are_there():
    def share(*, partition_id, server_round, seed):
        return float(partition_id != 1)

    sampling = Sampling(proportional, [1, 9, 3], 4, 0, "train-sampling", Availability(functools.partial(share), 0))
    counts = Counter(i for r in range(1, 501) for i in sampling(r))
    assert abs(counts[0] - 500) < 4.5 * math.sqrt(2000 * 0.25 * 0.75)
    assert counts[2] == 2000 - counts[0]


BERNOULLI = ["availability=bernoulli", "availability.probability=0.3", "federation.num_rounds=5"]
STRAGGLERS = ["availability=stragglers", "availability.fraction=0.9", "federation.num_rounds=2"]


@pytest.mark.parametrize("options", [BERNOULLI, STRAGGLERS, [*STRAGGLERS, "strategy=ditto"]], ids=" ".join)
def test_workers_give_the_same_bits(run, options):
    assert run(*SMALL, *options, "hardware=workers").numbers() == run(*SMALL, *options).numbers()


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fednova", "fedrep", "ditto"])
@pytest.mark.parametrize("options", [BERNOULLI, STRAGGLERS], ids=" ".join)
def test_a_batched_cohort_is_its_clients_up_to_rounding(run, options, strategy):
    words = [*SMALL, *options, "dtype=float64", f"strategy={strategy}", *["model=mlp"] * (strategy == "fedrep")]
    alone, together = run(*words), run(*words, "hardware=batched", "hardware.compile=false")
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12)
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert one["local/steps"] == other["local/steps"]
        assert one.get("train/loss", 0) == pytest.approx(other.get("train/loss", 0), rel=1e-9)


def test_rounds_without_clients_leave_the_model_and_the_counts_are_those_of_the_draws(run):
    result = run(*SMALL, *BERNOULLI, "federation.fraction_train=0.5")
    there = []
    for server_round in range(1, 6):
        seeds = [derive_seed(0, "availability", server_round, i) for i in range(6)]
        there.append(sum(bernoulli(partition_id=0, server_round=0, seed=seed, probability=0.3) for seed in seeds))
    assert 0 in there  # otherwise nothing is shown
    assert [row["clients/available"] for row in result.rows] == there
    assert [row["clients/sampled"] for row in result.rows] == [min(3, n) for n in there]
    assert [row["clients/evaluated"] for row in result.rows] == [6] * 5
    for n, before, after in zip(there[1:], result.rows, result.rows[1:], strict=False):
        assert (before["model/sha256"] == after["model/sha256"]) == (n == 0)
        assert ("train/loss" in after) == (n > 0)
        assert after["comm/bytes_up"] > 0 or n == 0


def test_a_straggler_does_the_first_steps_by_hand(run):
    """The mean of models after the clients' own numbers of full-batch steps, 3 or fewer."""
    result = run(*DIABETES, "federation.fraction_train=1", "availability=stragglers", "availability.fraction=1")
    experiment = result.experiment
    work, models = [], []
    for i in range(4):
        share = stragglers(
            partition_id=i, server_round=1, seed=derive_seed(0, "availability", 1, i), fraction=1, epochs=None
        )
        work.append(math.ceil(Fraction(share) * 3))
        x, y = (array.numpy() for array in experiment.data.train_samples(i))
        design, w = np.column_stack([x, np.ones(len(x))]), stacked(dict_of(experiment.initial_arrays))
        for _ in range(work[-1]):
            w = w - 0.05 * 2 / len(y) * design.T @ (design @ w - y[:, 0])
        models.append(w)
    assert len(set(work)) > 1
    assert result.rows[0]["local/steps"] == sum(work)
    sizes = [len(rows) for rows in experiment.data.train]
    np.testing.assert_allclose(stacked(result.arrays), np.average(models, axis=0, weights=sizes), rtol=0, atol=1e-10)


def dict_of(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return random.random()", r"must return the same for the same arguments, got 0.\d+ and 0.\d+ for partition 0"),
        ("return 1.5", r"from 0 to 1, got 1.5 for partition 0 in round 1"),
        ("return float('nan')", r"from 0 to 1, got nan for partition 0"),
        ("return None", r"'<=' not supported"),
        ("return 0", r"no client trains in any round; try availability=always"),
    ],
)
def test_what_is_no_share_is_refused_before_the_run(compose, tmp_path, monkeypatch, body, said):
    text = f"""
        import random


        def mine(*, partition_id, server_round, seed):
            {body}
    """
    (tmp_path / "my_availability.py").write_text(textwrap.dedent(text))
    (tmp_path / "availability").mkdir()
    (tmp_path / "availability" / "mine.yaml").write_text("_target_: my_availability.mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_availability", raising=False)
    experiment = Experiment(*compose("availability=mine", "tracker=none", config_dir=tmp_path))
    with pytest.raises(InputError, match=f"^availability=mine.*{said}"):
        prepare(experiment)


def test_a_rule_that_some_round_would_be_too_small_for_is_refused_but_not_for_empty_rounds(compose):
    words = ["strategy=multikrum", "federation.fraction_train=1", "tracker=none", "availability=bernoulli"]
    with pytest.raises(InputError, match=r"= 3 clients, got the [12] that train in round \d+, of 10 with samples"):
        prepare(Experiment(*compose(*words, "availability.probability=0.4")))
    prepare(Experiment(*compose(*words, "availability.probability=1.0")))


def test_the_hash_of_the_sampling_follows_availability(compose):
    hashes = [
        Experiment(*compose("tracker=none", *words)).sampling_sha256()
        for words in ([], ["availability=bernoulli"], ["availability=bernoulli", "availability.probability=1.0"])
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_clients_that_evaluate_are_drawn_by_a_scheme_of_their_own(run, compose):
    words = [*SMALL, "federation.num_rounds=3", "evaluate_sampling=fixed", "evaluate_sampling.partition_ids=[1,3,3]"]
    result = run(*words)
    by_hand = result.experiment.client_app
    losses = []
    by_hand.model.load_state_dict({name: torch.from_numpy(array) for name, array in result.arrays.items()})
    for i in (1, 3):
        x, y = result.experiment.data.validation_samples(i)
        losses.append(torch.nn.functional.cross_entropy(by_hand.model(x), y).item())
    assert [row["clients/evaluated"] for row in result.rows] == [2] * 3
    assert result.rows[-1]["clients/loss_mean"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.rows[-1]["model/sha256"] == run(*SMALL, "federation.num_rounds=3").rows[-1]["model/sha256"]


def test_round_robin_evaluates_one_cohort_after_another(compose):
    words = ["evaluate_sampling=round_robin", "federation.fraction_evaluate=0.4", "tracker=none"]
    cohort = Experiment(*compose(*words)).evaluate_cohort
    assert [cohort(r) for r in (1, 2, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    nobody = Experiment(*compose("evaluate_sampling=fixed", "federation.fraction_evaluate=0", "tracker=none"))
    assert nobody.evaluate_cohort(1) == []


def test_a_partition_that_cannot_evaluate_is_refused_in_one_line(compose):
    words = ["evaluate_sampling=fixed", "evaluate_sampling.partition_ids=[99]", "tracker=none"]
    with pytest.raises(InputError) as error:
        prepare(Experiment(*compose(*words)))
    assert str(error.value) == (
        "evaluate_sampling=fixed: partition ids must be from 0 to 9 and hold validation data, got [99]"
    )


def test_a_round_asks_each_client_once():
    asked = []

    def here(*, partition_id, server_round, seed):
        asked.append((server_round, partition_id))
        return partition_id % 2

    sampling = Sampling(uniform, [1] * 6, 2, 0, "train-sampling", Availability(functools.partial(here), 0))
    for server_round in (1, 2):
        assert [*sampling.eligible(server_round)] == [1, 3, 5]
        assert {*sampling(server_round)} < {1, 3, 5}
    assert asked == [(server_round, partition_id) for server_round in (1, 2) for partition_id in range(6)]
