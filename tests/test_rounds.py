"""The round loop, the sampling, the grid and the records between them."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from fedresearch.config.cohorts import cohort_size
from fedresearch.errors import InputError
from fedresearch.federation import flower, row_sums, update_sums
from fedresearch.federation.client_app import Clients
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.layout import Layout
from fedresearch.federation.measures import measure_clients, measure_updates
from fedresearch.federation.records import array_record, cast_like, sha256, view
from fedresearch.federation.sampling import Sampling, uniform
from fedresearch.federation.stack import StackedReplies
from fedresearch.hardware.in_process import InProcessGrid

# Sums and differences of these are exact.
EIGHTHS = st.integers(-80, 80).map(lambda i: i / 8)


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def test_arrays_come_back_in_their_own_dtypes():
    before = record(w=np.ones(2, np.float32), count=np.array(3, np.int64), half=np.ones(1, np.float16))
    averaged = record(w=np.full(2, 0.25), count=np.array(3.6), half=np.ones(1, np.float32))
    after = cast_like(averaged, before)
    assert {k: v.numpy().dtype.name for k, v in after.items()} == {"w": "float32", "count": "int64", "half": "float16"}
    assert after["count"].numpy() == 4
    assert after["count"].numpy().shape == ()
    assert after["w"].numpy().tolist() == [0.25, 0.25]


def test_a_value_beyond_a_dtype_is_infinite():
    assert np.isposinf(cast_like(record(w=np.array(1e39)), record(w=np.array(0, np.float32)))["w"].numpy())


def test_an_array_that_has_its_dtype_is_shared_and_cannot_be_written():
    before = array_record({"w": np.zeros(2, np.float32), "count": np.array(3)})
    averaged = array_record({"w": np.full(2, 0.25, np.float32), "count": np.array(3.6)})
    after = cast_like(averaged, before)
    assert after["w"] is averaged["w"]
    assert after["count"].numpy() == 4
    for written in (after["w"].numpy(), after.to_torch_state_dict()["w"]):  # copies, as Flower's are
        written[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        view(after["w"])[0] = 1
    averaged["w"] = averaged["count"]  # a strategy may write into the record that it returned
    assert after["w"].numpy().tolist() == [0.25, 0.25]


def test_the_hash_is_of_names_types_shapes_and_values():
    expected = hashlib.sha256()
    expected.update(b"a <i8 ()\n" + (7).to_bytes(8, "little"))
    expected.update(b"b <f4 (1, 2)\n" + np.array([1.5, -2.0], "<f4").tobytes())
    a, b = np.array(7), np.array([[1.5, -2.0]], np.float32)
    assert sha256(record(b=b, a=a)) == expected.hexdigest()
    assert sha256(record(a=a, b=b)) == expected.hexdigest()
    others = [record(a=a, b=b.T), record(a=a, c=b), record(a=a, b=b.astype("f8")), record(a=a + 1, b=b)]
    assert len({sha256(other) for other in others} | {expected.hexdigest()}) == 5


@given(
    clients=st.lists(st.lists(EIGHTHS, min_size=3, max_size=3), min_size=1, max_size=6),
    origin=st.lists(EIGHTHS, min_size=3, max_size=3),
)
def test_cosine_is_the_mean_over_pairs(clients, origin):
    start = np.array(origin)
    replies = [reply_of(record(w=start + np.array(client)), {"num-steps": 2}) for client in clients]
    row, _, columns = measured(start, replies)
    assert row["local/steps"] == 2 * len(clients)
    units = [u / np.linalg.norm(u) for c in clients if np.linalg.norm(u := start + np.array(c) - start) > 0]
    pairs = [a @ b for a, b in itertools.combinations(units, 2)]
    if pairs:
        assert row["update/cosine"] == pytest.approx(np.mean(pairs), abs=1e-9)
    else:
        assert "update/cosine" not in row
    updates = [start + np.array(client) - start for client in clients]
    np.testing.assert_allclose(columns["update/norm"], np.linalg.norm(updates, axis=1), rtol=1e-12)
    mean = np.mean(updates, axis=0)
    for update, cosine in zip(updates, columns["update/cosine"], strict=True):
        length = np.linalg.norm(update) * np.linalg.norm(mean)
        assert math.isnan(cosine) if length == 0 else cosine == pytest.approx(update @ mean / length, abs=1e-9)


@pytest.mark.parametrize("num_columns", [3, 64, 150])  # 64 at once
def test_updates_are_measured_in_parts_without_what_is_not_finite(monkeypatch, num_columns):
    monkeypatch.setattr(row_sums, "_AT_ONCE", 1)
    monkeypatch.setattr(update_sums, "_AT_ONCE", 2)
    updates = np.random.default_rng(0).normal(size=(5, num_columns))
    finite = updates[[0, 1, 3, 4]]
    updates[2, 1] = np.inf
    origin = np.linspace(100, -100, num_columns)
    replies = [reply_of(record(w=origin + update), {"num-steps": 1}) for update in updates]
    row, nonfinite, columns = measured(origin, replies)
    assert nonfinite == [2]
    norms = np.linalg.norm(finite, axis=1)
    units, mean = finite / norms[:, None], finite.mean(axis=0)
    cosines = finite @ mean / norms / np.linalg.norm(mean)
    np.testing.assert_allclose(columns["update/norm"], np.insert(norms, 2, np.nan), rtol=1e-12)
    np.testing.assert_allclose(columns["update/cosine"], np.insert(cosines, 2, np.nan), rtol=1e-10)
    assert row["update/cosine"] == pytest.approx(np.mean([a @ b for a, b in itertools.combinations(units, 2)]))
    assert all(map(math.isnan, measured(origin, replies, to_mean=False)[2]["update/cosine"]))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_statistic_of_batchnorm_that_is_not_finite_is_as_bad_as_a_parameter(value):
    good, bad = (
        reply_of(record(w=np.ones(1), var=np.array([1, v]), n=np.array(3)), {"num-steps": 1}) for v in (2, value)
    )
    origin = record(w=np.zeros(1), var=np.ones(2), n=np.array(0))
    assert measure_updates(origin, StackedReplies.of([good, bad], Layout(origin, frozenset({"w"}))))[1] == [1]


def measured(origin, replies, **options):
    layout = Layout(record(w=origin), frozenset({"w"}))
    return measure_updates(record(w=origin), StackedReplies.of(replies, layout), **options)


def reply_of(arrays, metrics):
    metadata = Metadata(1, "", 2, 1, "", "", 0.0, 1.0, "train")
    return flower.message(metadata, RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}))


def test_clients_metrics_are_spread_tenth_percentile_and_worst():
    accuracies = [0.5, 0.6, 0.7, 0.8, 0.9]
    per_client = [MetricRecord({"eval_loss": 1 - a, "accuracy": a, "num-examples": 10}) for a in accuracies]
    row = measure_clients(per_client, {"accuracy": "up"})
    assert row["clients/evaluated"] == 5
    assert row["clients/accuracy_mean"] == pytest.approx(0.7)
    assert row["clients/accuracy_std"] == pytest.approx(0.02**0.5)  # population: (.04+.01+0+.01+.04)/5
    assert row["clients/accuracy_p10"] == pytest.approx(0.54)  # 40 % of the way from 0.5 to 0.6
    assert row["clients/accuracy_worst"] == 0.5
    assert row["clients/loss_worst"] == pytest.approx(0.5)
    assert row["clients/loss_p90"] == pytest.approx(0.46)


@pytest.mark.parametrize("losses", [[1.0, np.inf], [np.inf, np.inf], [1.0, np.nan], [np.nan, 1.0]])
def test_a_loss_that_is_not_finite_is_the_worst_in_any_order_and_without_a_warning(losses):
    row = measure_clients([MetricRecord({"eval_loss": loss, "num-examples": 10}) for loss in losses], {})
    assert not any(np.isfinite(row[f"clients/loss_{of}"]) for of in ("mean", "std", "worst"))


@pytest.mark.parametrize(
    ("num_supernodes", "fraction", "size"),
    [(100, 0.1, 10), (10, 0.25, 2), (100, 0.29, 29), (30, 0.1, 3), (10, 0.01, 1), (1, 1.0, 1), (7, 1.0, 7)],
)
def test_a_fraction_is_rounded_down_to_at_least_one_client(num_supernodes, fraction, size):
    assert cohort_size(num_supernodes, fraction) == size


def cohort_of(server_round):
    """Return who trains in a round of the default experiment: five of ten."""
    return sorted(Sampling(uniform, [1] * 10, 5, 0, "train-sampling")(server_round))


def counting_app():
    """A ClientApp that counts its calls in its state, and fails when told to."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        count = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
        context.state["calls"] = MetricRecord({"n": count})
        config = message.content["config"]
        config["seen"] = True  # must not reach the next client
        if config["fail"] == context.node_config["partition-id"]:
            raise ValueError("told to")
        seen = MetricRecord({"n": count, "partition": context.node_config["partition-id"]})
        return Message(RecordDict({"metrics": seen}), reply_to=message)

    return app


def ask(grid, fail=-1, nodes=None):
    content = RecordDict({"config": ConfigRecord({"fail": fail})})
    nodes = list(grid.get_node_ids()) if nodes is None else nodes
    replies = grid.send_and_receive(messages=[Message(content, node, "query") for node in nodes])
    assert "seen" not in content["config"]
    return list(replies)


def test_a_cohort_is_a_grid_of_its_own():
    grid = InProcessGrid(counting_app(), 5)
    cohort = CohortGrid(grid, [1, 4])
    nodes = list(grid.get_node_ids())
    assert list(cohort.get_node_ids()) == [nodes[1], nodes[4]]
    assert [cohort.partition_of(node) for node in cohort.get_node_ids()] == [1, 4]
    assert [r.content["metrics"]["partition"] for r in ask(cohort)] == [1, 4]


def test_round_0_is_the_initial_model_and_changes_no_round(run):
    options = ["federation.num_rounds=5", "local.epochs=1", "federation.target_accuracy=0.01"]  # which it has, too
    first, *rest = run(*options, "federation.evaluate_initial=true").rows
    alone = run(*options)
    assert [row["round"] for row in rest] == [1]
    model, data = alone.experiment.model, alone.experiment.data
    model.load_state_dict(alone.experiment.state_dict(alone.experiment.initial_arrays))
    with torch.no_grad():
        outputs = model(data.test_x)
    assert {k: v for k, v in first.items() if not k.startswith("time/")} == {
        "round": 0,
        "eval/loss": pytest.approx(torch.nn.functional.cross_entropy(outputs, data.test_y).item(), abs=1e-6),
        "eval/accuracy": pytest.approx((outputs.argmax(1) == data.test_y).float().mean().item(), abs=1e-6),
        "comm/bytes_down_total": 0,
        "comm/bytes_up_total": 0,
        "model/sha256": sha256(alone.experiment.initial_arrays),
    }
    assert 0 < first["time/round_s"] == first["time/total_s"] < rest[0]["time/total_s"]
    assert [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rest] == alone.numbers()


def test_the_global_loss_is_that_of_all_training_samples(run):
    options = ["federation.num_rounds=2", "local.epochs=1", "partitioner=pathological"]
    result = run(*options, "federation.evaluate_train=true", "federation.evaluate_initial=true")
    model, data = result.experiment.model, result.experiment.data
    x, y = (torch.cat(parts) for parts in zip(*map(data.train_samples, range(10)), strict=True))
    for row, arrays in ((result.rows[0], result.experiment.initial_arrays), (result.rows[-1], record(**result.arrays))):
        model.load_state_dict(result.experiment.state_dict(arrays))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(x), y).item()
        assert row["train/global_loss"] == pytest.approx(loss, rel=1e-5)
    assert result.rows[-1]["model/sha256"] == run(*options).rows[-1]["model/sha256"]


def test_a_round_has_all_its_numbers(run):
    result = run("federation.num_rounds=2", "federation.fraction_evaluate=0.3", "local.epochs=1")
    row = result.rows[-1]
    parameters = 64 * 200 + 200 + 200 * 10 + 10
    assert row["round"] == 2
    assert row["clients/sampled"] == 5
    assert row["clients/failed"] == 0
    assert row["clients/evaluated"] == 3
    # Five clients were sent the model to train and sent it back, three to evaluate: four bytes a number, and at most
    # 2 kB of names, shapes, metrics and config for each.
    assert 0 < row["comm/bytes_down"] - 5 * 4 * parameters < 5 * 2000
    assert 0 < row["comm/bytes_up"] - 5 * 4 * parameters < 5 * 2000
    assert 0 < row["comm/evaluate_bytes_down"] - 3 * 4 * parameters < 3 * 2000
    assert 0 < row["comm/evaluate_bytes_up"] < 3 * 2000
    assert row["comm/bytes_up_total"] == sum(r["comm/bytes_up"] for r in result.rows)
    data = result.experiment.data
    steps = [sum(-(-len(data.train[i]) // 10) for i in cohort_of(r)) for r in (1, 2)]
    assert [r["local/steps"] for r in result.rows] == steps
    assert row["model/sha256"] == sha256(record(**result.arrays))
    for key in ("train/loss", "eval/loss", "eval/accuracy", "update/norm", "update/cosine", "clients/accuracy_worst"):
        assert np.isfinite(row[key]), key
    assert row["time/total_s"] >= row["time/round_s"] > 0


def test_averages_weigh_clients_by_their_examples(run):
    """One local step at rate zero leaves the model alone, so the losses averaged are those of the initial model."""
    result = run(
        "federation.num_rounds=1", "optimizer.lr=1e-30", "local.batch_size=0", "local.epochs=1", "dtype=float64"
    )
    from fedresearch.local.metrics import accuracy
    from fedresearch.local.objective import evaluate

    data, model = result.experiment.data, result.experiment.model
    cohort = cohort_of(1)
    sizes = [len(data.train[i]) for i in cohort]
    losses = [evaluate(model, *data.train_samples(i))["loss"] for i in cohort]
    assert result.rows[0]["train/loss"] == pytest.approx(np.average(losses, weights=sizes), abs=1e-12)
    sizes = [len(rows) for rows in data.validation]
    metrics = {"accuracy": accuracy}
    accuracies = [evaluate(model, *data.validation_samples(i), metrics=metrics)["accuracy"] for i in range(10)]
    assert result.rows[0]["clients/accuracy"] == pytest.approx(np.average(accuracies, weights=sizes), abs=1e-12)


@pytest.mark.slow
def test_integer_buffers_survive_aggregation(run):
    result = run(
        "model=resnet18",
        "model.norm=batch",
        "federation.num_supernodes=2",
        "federation.num_rounds=1",
        "federation.fraction_train=1",
        "local.epochs=null",
        "local.steps=2",
    )
    buffers = {name: array for name, array in result.arrays.items() if name.endswith("num_batches_tracked")}
    assert len(buffers) == 20  # ResNet-18 has 20 BatchNorm layers
    assert all(array.dtype == np.int64 and array.shape == () and array == 2 for array in buffers.values())
    assert {array.dtype.name for name, array in result.arrays.items() if name not in buffers} == {"float32"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["federation.num_supernodes=1", "partitioner=iid"],
        ["federation.fraction_evaluate=0", "validation.fraction=0"],
        ["federation.fraction_train=0.01", "federation.evaluate_every=3"],
        ["partitioner.alpha=0.02", "partitioner.min_partition_size=0", "federation.num_supernodes=40"],
    ],
    ids=["one client", "no evaluation by clients", "one client a round", "empty partitions"],
)
def test_corner_cases_run(run, overrides):
    result = run(*overrides, "federation.num_rounds=3", "local.epochs=1")
    assert [row["round"] for row in result.rows] == [1, 2, 3]
    assert all(np.isfinite(row["train/loss"]) for row in result.rows)


def test_a_failing_client_stops_the_run_and_is_named(run, monkeypatch):
    from fedresearch.local.train import LocalTrainer

    train = LocalTrainer.__call__

    def fail(trainer, task):
        if len(task.y) > 2:  # more than the step that is tried before the run
            raise ArithmeticError("not today")
        return train(trainer, task)

    monkeypatch.setattr(LocalTrainer, "__call__", fail)
    cohort = cohort_of(1)
    with pytest.raises(
        RuntimeError, match=rf"partitions {cohort[0]}, .* failed in round 1:\n(.|\n)*ArithmeticError: not today"
    ):
        run("model=logistic")


def test_sums_are_formed_on_one_thread():
    """A product of long vectors is shared out among BLAS's threads, and its rounding with it."""
    with threadpool_limits(2, user_api="blas"):
        InProcessGrid(ClientApp(), 1)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    assert torch.get_num_threads() == 1


def _without_num_examples(result):
    result.metrics.pop("num-examples")


def _with_another_name(result):
    result.arrays["other"] = result.arrays.pop("linear.bias")


def _with_another_shape(result):
    result.arrays["linear.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_num_examples, r"the metrics num-examples are missing in the reply of partition \d"),
        (
            _with_another_name,
            r"the reply of partition \d must have the arrays of the global model; different: linear.bias, other",
        ),
        (
            _with_another_shape,
            r"the reply of partition \d must have linear.bias of shape \(10,\), got \(3,\)",
        ),
    ],
)
@pytest.mark.parametrize("stacks", [True, False])
def test_a_reply_that_does_not_fit_is_reported(run, monkeypatch, change, said, stacks):
    result_of = Clients.result

    def changed(*arguments):
        result = result_of(*arguments)
        change(result)
        return result

    monkeypatch.setattr(Clients, "result", changed)
    monkeypatch.setattr(Clients, "stacks", stacks)
    with pytest.raises(InputError, match=said):
        run("federation.num_rounds=1", "model=logistic", "local.epochs=1")
