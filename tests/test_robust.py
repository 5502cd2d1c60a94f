"""Krum, Multi-Krum, Bulyan and q-FedAvg against loops in plain NumPy; and a liar against every robust rule."""

import copy
import textwrap
from types import SimpleNamespace

import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import Metadata, MetricRecord, RecordDict

from fedresearch.federation import flower
from fedresearch.federation.buffers import SeparateBuffers
from fedresearch.federation.records import array_record
from fedresearch.federation.rounds import Stalled
from fedresearch.strategies.bulyan import Bulyan
from fedresearch.strategies.krum import Krum, MultiKrum
from fedresearch.strategies.qfedavg import QFedAvg
from fedresearch.strategies.robust import _BLOCK


def reply(node_id, arrays, num_examples=1):
    """Return a client's reply to a training message."""
    metrics = MetricRecord({"num-examples": num_examples, "uniform": 1, "train_loss": float(node_id)})
    content = RecordDict({"arrays": array_record(arrays), "metrics": metrics})
    return flower.message(Metadata(1, f"{node_id}", node_id, 1, "", "", 0.0, 1.0, "train"), content)


def krum_order(vectors, f):
    """Return the indices of vectors by Blanchard et al.'s score, the least first, as their Section 4 says it."""
    scored = []
    for i, own in enumerate(vectors):
        distances = sorted(float(np.sum((own - other) ** 2)) for j, other in enumerate(vectors) if j != i)
        scored.append((sum(distances[: max(1, len(vectors) - f - 2)]), i))
    return [i for _, i in sorted(scored)]


def multikrum(vectors, f, m):
    return sum(vectors[i] for i in krum_order(vectors, f)[:m]) / m


def bulyan(vectors, f):
    """Return El Mhamdi et al.'s: Krum again and again on what is left; then what is closest to each median."""
    received, selected = list(vectors), []
    while len(selected) < len(vectors) - 2 * f:
        selected.append(received.pop(krum_order(received, f)[0]))
    result = []
    for values in np.array(selected).T:
        median = np.median(values)
        closest = sorted(values, key=lambda value, median=median: abs(value - median))[: len(selected) - 2 * f]
        result.append(sum(closest) / len(closest))
    return np.array(result)


def bulyan_flower(vectors, f):
    selected = np.array([vectors[i] for i in krum_order(vectors, f)[: len(vectors) - 2 * f]])
    result = []
    for values in selected.T:
        order = np.argsort(np.abs(values - np.median(values)))
        result.append(values[order[: len(selected) - 2 * f]].mean())
    return np.array(result)


def as_models(vectors):
    """Return vectors as models of two arrays, one of them a scalar: name to ``(n, *shape)``."""
    stacked = np.array(vectors)
    return {"a": stacked[:, :-1].reshape(len(stacked), 2, -1), "b": stacked[:, -1]}


def as_vector(model):
    return np.append(model["a"].ravel(), model["b"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "f"), [(3, 0), (4, 0), (7, 1), (10, 1), (11, 2), (14, 2)])
def test_the_rules_are_their_papers(n, f, seed):
    rng = np.random.default_rng([seed, n])
    vectors = list(rng.normal(size=(n, 13)) * rng.lognormal(size=(n, 1)))
    models = as_models(vectors)
    krum = as_vector(Krum(num_malicious_nodes=f).combine(models))
    np.testing.assert_array_equal(krum, vectors[krum_order(vectors, f)[0]])
    for m in (1, 3):
        ours = as_vector(MultiKrum(num_malicious_nodes=f, num_nodes_to_select=m).combine(models))
        np.testing.assert_allclose(ours, multikrum(vectors, f, m), rtol=0, atol=1e-14)
    ours = as_vector(Bulyan(num_malicious_nodes=f).combine(models))
    np.testing.assert_allclose(ours, bulyan(vectors, f), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "rule",
    [
        Krum(num_malicious_nodes=2),
        MultiKrum(num_malicious_nodes=2, num_nodes_to_select=9),
        Bulyan(num_malicious_nodes=2),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_where_all_but_f_agree_that_is_the_result(rule):
    vectors = [np.arange(13.0)] * 11
    vectors[0], vectors[7] = vectors[0] + 1e6, vectors[0] - 0.1
    np.testing.assert_array_equal(as_vector(rule.combine(as_models(vectors))), np.arange(13.0))


def test_bulyans_krum_runs_on_what_is_left():
    """Seven clients at 0, 1, 2, 3, 6, 7 and 9, f = 1: by hand.

    The scores, of the 4 closest others, are 50, 31, 22, 23, 35, 46 and 98: Flower takes 2, 3, 1, 6 and 7, whose median
    is 3, with 1, 2 and 3 closest. The paper takes 2; of 0, 1, 3, 6, 7 and 9, with the scores 46, 30, 22, 19, 21 and 49
    of the 3 closest, 6; of 0, 1, 3, 7 and 9, with 10, 5, 13, 20 and 40, 1; of 0, 3, 7 and 9, with 9, 9, 4 and 4, 7;
    of 0, 3 and 9, with 9, 9 and 36, 0. The median of 2, 6, 1, 7 and 0 is 2, with 0, 1 and 2 closest.
    """
    points = [0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 9.0]
    replies = [reply(i, {"a": point}) for i, point in enumerate(points)]
    for rule, expected in ((Bulyan, 1.0), (flwr.serverapp.strategy.Bulyan, 2.0)):
        arrays, _ = rule(num_malicious_nodes=1).aggregate_train(1, copy.deepcopy(replies))
        assert arrays["a"].numpy() == expected


@pytest.mark.parametrize("rule", [Krum(num_malicious_nodes=2), Bulyan(num_malicious_nodes=2)])
def test_small_updates_of_large_weights_are_distinguished_in_any_precision(rule):
    """Distances of 0.005 between honest clients and 0.02 to a liar are lost in the rounding of squared norms of 1e7."""
    rng = np.random.default_rng(0)
    start = rng.integers(-512, 512, 2000).astype(np.float64) / 4
    updates = rng.integers(-4, 5, (11, 2000)) * 2.0**-15
    updates[[3, 8]] += 12 * 2.0**-15
    models = start + updates
    exact, single = (
        rule.combine({"a": models}),
        rule.combine({"a": models.astype(np.float32)}),
    )
    assert (models.astype(np.float32) == models).all()  # so that precision is all that differs
    np.testing.assert_array_equal(exact["a"], single["a"])
    assert np.abs(exact["a"] - start).max() <= 4 * 2.0**-15


def test_arrays_larger_than_a_block():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, _BLOCK + 3))
    result = Bulyan(num_malicious_nodes=0).combine({"a": vectors[:, None]})
    np.testing.assert_allclose(result["a"], np.mean(vectors, axis=0)[None], rtol=0, atol=1e-14)
    chosen = Krum(num_malicious_nodes=1).combine({"a": vectors})
    np.testing.assert_array_equal(chosen["a"], vectors[krum_order(vectors, 1)[0]])


def test_what_is_not_finite_is_far_from_all():
    models = {"a": np.array([[value, 0.0] for value in (np.nan, 1.0, 2.0, 3.0, np.inf, 1.5, -np.inf)])}
    assert Krum(num_malicious_nodes=2).combine(models)["a"][0] == 2  # at 0.5, 1 and 1 from the others
    middle = MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4).combine(models)
    assert middle["a"].tolist() == [(1 + 2 + 3 + 1.5) / 4, 0]


def test_a_client_that_is_drawn_twice_has_one_model():
    """Its twin at distance 0 would be the closest of all; the metrics count it twice, as in every average."""
    replies = [reply(i, {"a": point}) for i, point in enumerate([0.0, 1.0, 2.0, 3.0, 9.0])]
    once, _ = Krum(num_malicious_nodes=1).aggregate_train(1, replies)
    again, metrics = Krum(num_malicious_nodes=1).aggregate_train(1, [*replies, replies[4], replies[4]])
    assert once["a"].numpy() == again["a"].numpy() == 1
    assert metrics["train_loss"] == pytest.approx((0 + 1 + 2 + 3 + 4 * 3) / 7)
    with pytest.raises(Stalled, match="Bulyan needs 7 clients, got 5"):
        Bulyan(num_malicious_nodes=1).aggregate_train(1, [*replies, *replies])


@pytest.mark.parametrize(
    ("rule", "needed"),
    [
        (Krum(num_malicious_nodes=1), 5),
        (MultiKrum(num_malicious_nodes=1, num_nodes_to_select=6), 6),
        (Bulyan(num_malicious_nodes=1), 7),
    ],
)
def test_there_is_no_result_of_fewer_models_than_a_rule_needs(rule, needed):
    replies = [reply(i, {"a": float(i)}) for i in range(needed)]
    assert rule.aggregate_train(1, replies)[0] is not None
    with pytest.raises(Stalled, match=rf"needs {needed} clients, got {needed - 1}"):
        rule.aggregate_train(1, replies[:-1])


def test_multikrums_mean_ignores_what_clients_say_of_their_examples():
    replies = [reply(i, {"a": float(i)}, num_examples=1 + 1000 * (i == 2)) for i in range(5)]
    rule = MultiKrum(num_malicious_nodes=0, num_nodes_to_select=3)
    assert rule.aggregate_train(1, replies)[0]["a"].numpy() == 2


def test_buffers_beside_a_rule_have_their_median():
    """Nine clients count 10, 11, ... batches and have variances near 1; the liar's parameters are the best of all."""
    replies = [reply(i, {"a": 0.1 * i, "count": np.array(10 + i), "var": np.full(3, 1 + 0.1 * i)}) for i in range(9)]
    replies.append(reply(9, {"a": 0.4, "count": np.array(10), "var": np.full(3, 1e6)}, num_examples=10**6))
    strategy = SeparateBuffers(Krum(num_malicious_nodes=1), frozenset({"count", "var"}), None)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays["a"].numpy() == 0.4
    np.testing.assert_allclose(arrays["var"].numpy(), 1.45)  # between the fifth and the sixth of ten
    assert arrays["count"].numpy() == 13.5  # of 10, 10, 11, ..., 18


DIGITS = [
    "dataset=digits",
    "model=logistic",
    "partitioner=dirichlet",
    "dtype=float64",
    "validation.fraction=0",
    "federation.num_supernodes=11",
    "federation.fraction_train=1",
    "federation.fraction_evaluate=0",
    "federation.num_rounds=4",
    "local.epochs=null",
    "local.steps=3",
    "local.batch_size=0",
    "optimizer.lr=0.2",
]


def loss_and_gradient(weights, x, y):
    """Return the mean cross-entropy of ``softmax(x W' + b)``, and its gradient; weights are ``[W, b]``."""
    logits = x @ weights[:, :-1].T + weights[:, -1]
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(len(y)), y]).mean()
    shares[np.arange(len(y)), y] -= 1
    return loss, np.column_stack([shares.T @ x, shares.sum(axis=0)]) / len(y)


def qfedavg(w, models, losses, q, lipschitz):
    """Return Li et al.'s Algorithm 2, lines 6 to 8, as they stand."""
    deltas, hs = [], []
    for w_k, loss in zip(models, losses, strict=True):
        delta_w = lipschitz * (w - w_k)
        deltas.append(loss**q * delta_w)
        hs.append(q * loss ** (q - 1) * np.sum(delta_w**2) + lipschitz * loss**q)
    return w - sum(deltas) / sum(hs)


TRAJECTORIES = {
    "krum": (["num_malicious_nodes=3"], lambda w, models, losses: models[krum_order(models, 3)[0]]),
    "multikrum": (
        ["num_malicious_nodes=3", "num_nodes_to_select=4"],
        lambda w, models, losses: multikrum(models, 3, 4),
    ),
    "bulyan": (["num_malicious_nodes=2"], lambda w, models, losses: bulyan(models, 2)),
    "bulyan_flower": (["num_malicious_nodes=2"], lambda w, models, losses: bulyan_flower(models, 2)),
    "qfedavg": (["q=1.5"], lambda w, models, losses: qfedavg(w, models, losses, 1.5, 1 / 0.2)),
}


@pytest.mark.parametrize("strategy", TRAJECTORIES)
def test_trajectories(run, strategy):
    """Four rounds of softmax regression on eleven unlike clients, from the equations alone."""
    options, rule = TRAJECTORIES[strategy]
    result = run(*DIGITS, f"strategy={strategy}", *(f"strategy.server.{option}" for option in options))
    data = result.experiment.data
    samples = [[array.numpy() for array in data.train_samples(i)] for i in range(11)]
    samples = [(x.reshape(len(x), -1), y) for x, y in samples]
    bias, weight = (result.experiment.initial_arrays[name].numpy() for name in sorted(result.arrays))
    w = np.column_stack([weight, bias])
    for row in result.rows:
        before, models, losses = w, [], []
        for x, y in samples:
            losses.append(loss_and_gradient(w, x, y)[0])
            own = w
            for _ in range(3):
                own = own - 0.2 * loss_and_gradient(own, x, y)[1]
            models.append(own.ravel())
        w = rule(w.ravel(), models, losses).reshape(w.shape)
        assert row["update/norm"] == pytest.approx(np.linalg.norm(w - before), rel=1e-11)
    bias, weight = (result.arrays[name] for name in sorted(result.arrays))
    np.testing.assert_allclose(np.column_stack([weight, bias]), w, rtol=0, atol=1e-12)


def test_the_two_bulyans_differ_where_some_are_malicious(run):
    options = [*DIGITS, "strategy.server.num_malicious_nodes=2"]
    paper, flowers = (run(*options, f"strategy={name}").rows[-1] for name in ("bulyan", "bulyan_flower"))
    assert abs(paper["eval/loss"] - flowers["eval/loss"]) > 1e-4


@pytest.mark.parametrize("strategy", ["krum", "multikrum"])
def test_single_and_double_precision_choose_the_same_clients(run, strategy):
    """With updates of 1e-4: Flower's float32 distances are rounding noise."""
    options = [*DIGITS, f"strategy={strategy}", "strategy.server.num_malicious_nodes=2", "optimizer.lr=1e-5"]
    single, double = (run(*options, f"dtype={dtype}").rows for dtype in ("float32", "float64"))
    for ours, exact in zip(single, double, strict=True):
        assert ours["update/norm"] == pytest.approx(exact["update/norm"], rel=1e-3)


def step(w, models, losses, q, lipschitz):
    """Return q-FedAvg's next model from vectors."""
    replies = SimpleNamespace(params=as_models(models), sent={"received-loss": {"F": np.array(losses)}})
    server = QFedAvg(q=q, client_learning_rate=1 / lipschitz)
    return server.step({name: each[0] for name, each in as_models([w]).items()}, {}, replies)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_q_fedavgs_step(q):
    rng = np.random.default_rng(0)
    w, *models = rng.normal(size=(5, 13))
    losses = [0.3, 2.5, 1e-3, 7.0]
    ours = step(w, models, losses, q, 4.0)
    np.testing.assert_allclose(as_vector(ours), qfedavg(w, models, losses, q, 4.0), rtol=0, atol=1e-13)
    if q == 0:
        np.testing.assert_allclose(as_vector(ours), np.mean(models, axis=0), rtol=0, atol=1e-13)


def test_q_fedavg_at_its_limits():
    """A client without loss pulls at nothing, whatever q; powers beyond 1e308, or all below 1e-308, cancel."""
    w, near, far = np.zeros(3), np.full(3, 1e-3), np.ones(3)
    for q in (0.5, 1.0, 3.0):
        alone = step(w, [w, far], [0.0, 2.0], q, 1.0)
        # The client without loss adds L F^q to the sum of h, which is at most sqrt(1e-10 / 2) of the other's.
        np.testing.assert_allclose(as_vector(alone), qfedavg(w, [far], [2.0], q, 1.0), rtol=1e-4)
    none = step(w, [near, far], [0.0, 0.0], 0.0, 1.0)
    np.testing.assert_allclose(as_vector(none), (near + far) / 2)
    for scale in (1e-9, 1e3):
        # As all losses are the same, F^q cancels: w - sum Delta w / sum (q / F |Delta w|^2 + L).
        large = step(w, [near, far], [scale, scale], 500.0, 1.0)
        expected = (near + far) / (500 / scale * (near @ near + far @ far) + 2)
        np.testing.assert_allclose(as_vector(large), expected, rtol=1e-12)


@pytest.fixture
def liar(tmp_path, monkeypatch):
    """Make ``dataset=sites model=normed``: ten clients of digits, of which one has inputs a thousand times too large.

    BatchNorm takes the factor out again, so that the client's parameters are like those of the others.
    """
    (tmp_path / "liar_sites.py").write_text(
        textwrap.dedent(
            """
            import numpy as np, torch
            from sklearn.datasets import load_digits
            from fedresearch.data.source import Samples, Source

            def load(scale):
                x, y = load_digits(return_X_y=True)
                x, y, site = torch.tensor(x / 16).float(), torch.tensor(y), np.arange(1437) % 10
                inputs = x[:1437].clone()
                inputs[torch.from_numpy(site == 3)] *= scale
                return Source(Samples(inputs, y[:1437], site), Samples(x[1437:], y[1437:]))

            class Normed(torch.nn.Sequential):
                def __init__(self, input_shape, num_classes):
                    norm = torch.nn.BatchNorm1d(16)
                    super().__init__(torch.nn.Linear(*input_shape, 16), norm, torch.nn.Linear(16, num_classes))
            """
        )
    )
    for group, text in {
        "dataset/sites": "_target_: liar_sites.load\nscale: 1000.0\n"
        "declares: {input: vector, input_shape: [64], num_classes: 10, columns: [label, natural_id]}",
        "model/normed": "_target_: liar_sites.Normed",
    }.items():
        (tmp_path / group).parent.mkdir(exist_ok=True)
        (tmp_path / f"{group}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


LIAR = [
    "dataset=sites",
    "model=normed",
    "partitioner=natural_id",
    "federation.num_supernodes=null",
    "federation.fraction_train=1",
    "federation.fraction_evaluate=0",
    "federation.num_rounds=2",
    "validation.fraction=0",
    "local.epochs=3",
    "optimizer.lr=0.2",
]
ROBUST = {
    "fedmedian": [],
    "fedtrimmedavg": [],
    "krum": ["strategy.server.num_malicious_nodes=1"],
    "multikrum": ["strategy.server.num_malicious_nodes=1"],
    "bulyan": ["strategy.server.num_malicious_nodes=1"],
    "bulyan_flower": ["strategy.server.num_malicious_nodes=1"],
    "fedavg": ["strategy.buffers=median"],
}


@pytest.mark.parametrize("strategy", ROBUST)
def test_one_liar_of_ten_does_not_move_the_statistics(run, liar, strategy):
    result = run(*LIAR, f"strategy={strategy}", *ROBUST[strategy], config_dir=liar)
    assert result.rows[-1]["eval/accuracy"] > 0.7
    assert (result.arrays["1.running_var"] < 10).all()
    assert result.arrays["1.num_batches_tracked"].dtype == np.int64
    assert result.arrays["1.num_batches_tracked"] == 2 * result.rows[0]["local/steps"] / 10


def test_the_mean_of_the_statistics_is_moved(run, liar):
    """Or the test above would show nothing."""
    result = run(*LIAR, "strategy=fedmedian", "strategy.buffers=average", config_dir=liar)
    assert (result.arrays["1.running_var"] > 1000).all()
    assert result.rows[-1]["eval/accuracy"] < 0.5
