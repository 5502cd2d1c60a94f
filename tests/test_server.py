"""The server half of a strategy: what it sees, what it may return, its state, and what wraps it."""

import textwrap

import numpy as np
import pytest
from flwr.app import ConfigRecord, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.records import array_record, view
from fedresearch.federation.replies import Replies
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.strategies.scaffold import Scaffold
from fedresearch.strategies.server import ServerUpdate
from tests.directories import conduct, killed, outcome, rows_of

X = array_record({"w": np.arange(3, dtype=np.float32)})


def reply(node_id, w, num_examples=1, **records):
    metrics = MetricRecord({"num-examples": num_examples, "uniform": 1, "train_loss": node_id / 3})
    arrays = {name: array_record(record) for name, record in {"arrays": {"w": w}, **records}.items()}
    content = RecordDict({**arrays, "metrics": metrics})
    return flower.message(Metadata(1, f"{node_id}", node_id, 1, "", "", 0.0, 1.0, "train"), content)


def configure(server, config=(), arrays=X):
    grid = CohortGrid(InProcessGrid(ClientApp(), 4), [0, 1, 3])
    return server.configure_train(1, arrays, ConfigRecord({"lr": 0.1, "num-clients": 4, **dict(config)}), grid)


@given(
    st.lists(
        st.tuples(st.integers(2, 4), st.integers(1, 1000), st.lists(st.floats(-1e3, 1e3, width=32), min_size=3)),
        min_size=1,
        max_size=9,
    )
)
def test_the_mean_has_the_bits_of_flowers(of_clients):
    """Of the models and of the metrics, also where clients occur twice."""
    replies = [reply(node, np.array(w[:3], np.float32), examples) for node, examples, w in of_clients]
    ours, theirs = (server.aggregate_train(1, replies) for server in (ServerUpdate(), FedAvg()))
    assert ours[0]["w"].numpy().tobytes() == theirs[0]["w"].numpy().tobytes()
    assert ours[1] == theirs[1]


def test_replies_are_stacked_in_their_order():
    sent = [{"variate": {"w": np.full(3, float(node))}, "loss": {"F": np.array(node / 2)}} for node in (5, 7, 7)]
    messages = [reply(node, np.full(3, node), node, **records) for node, records in zip((5, 7, 7), sent, strict=True)]
    replies = Replies(messages, "num-examples")
    assert replies.node_ids == [5, 7, 7]
    assert replies.weights.tolist() == [5, 7, 7]
    assert replies.params["w"].tolist() == [[5] * 3, [7] * 3, [7] * 3]
    assert replies.sent.keys() == {"variate", "loss"}
    assert replies.sent["variate"]["w"].tolist() == replies.params["w"].tolist()
    assert replies.sent["loss"]["F"].tolist() == [2.5, 3.5, 3.5]
    assert replies.metrics["train_loss"].tolist() == [5 / 3, 7 / 3, 7 / 3]
    assert replies.mean([1, 2, 4]) == pytest.approx((5 * 1 + 7 * 2 + 7 * 4) / 19)
    once = replies.once()
    assert once.node_ids == [5, 7]
    assert once.mean_params()["w"] == pytest.approx([(5 * 5 + 7 * 7) / 12] * 3)


class Returning(ServerUpdate):
    """Returns what it is made with."""

    def __init__(self, sent=(), stepped=None, found=(), **options):
        super().__init__(**options)
        self.sent, self.stepped, self.found = sent, stepped, found

    def send(self, x):
        return self.sent

    def step(self, x, mean, replies):
        return self.stepped

    def diagnostics(self):
        return self.found


def test_what_is_sent_arrives_as_numbers_and_records():
    messages = configure(Returning({"alpha": np.float32(0.5), "epoch": 3, "variate": {"w": [1.0, 2.0]}}))
    assert [message.metadata.dst_node_id for message in messages] == [2, 3, 5]
    for message in messages:
        assert message.content.keys() == {"arrays", "config", "variate"}
        assert dict(message.content["config"]) == {
            **{"lr": 0.1, "num-clients": 4, "server-round": 1},
            **{"alpha": 0.5, "epoch": 3.0},
        }
        assert message.content["variate"]["w"].numpy().tolist() == [1.0, 2.0]


def test_the_model_is_read_only_and_is_not_kept():
    class Careless(ServerUpdate):
        def step(self, x, mean, replies):
            x["w"] += 1

    server = Careless()
    configure(server)
    assert view(X["w"]) is server._x["w"]
    with pytest.raises(ValueError, match="read-only"):
        server.aggregate_train(1, [reply(2, [0.0] * 3)])
    assert vars(server)["_x"] == {}  # so that a checkpoint is not twice as large


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (None, r"Returning\.send must return a mapping of names to values, got NoneType"),
        ({"lr": 1.0}, r"Returning\.send returns lr, which messages have already; rename it"),
        ({"server-round": 1.0}, "send returns server-round, which messages have already"),
        ({"arrays": {}}, "send returns arrays, which messages have already"),
        ({"alpha": "large"}, r"send must return numbers and mappings of arrays, got alpha of type str"),
    ],
)
def test_what_cannot_be_sent_is_refused(sent, said):
    with pytest.raises(InputError, match=said):
        configure(Returning(sent))


@pytest.mark.parametrize(
    ("stepped", "found", "said"),
    [
        (None, {}, r"Returning\.step must return a mapping of names to values, got NoneType"),
        ([1.0], {}, "step must return a mapping of names to values, got list"),
        ({"w": [1.0]}, None, "diagnostics must return a mapping of names to values, got NoneType"),
        ({"w": [1.0]}, {"c": "large"}, "diagnostics must return numbers, got c of type str"),
        ({"w": [1.0]}, {"c": np.zeros(2)}, "diagnostics must return numbers, got c of type ndarray"),
        ({"w": [1.0]}, {"train_loss": 1.0}, "diagnostics returns train_loss, which clients send; rename it"),
    ],
)
def test_what_is_no_model_or_no_number_is_refused(stepped, found, said):
    with pytest.raises(InputError, match=said):
        Returning({}, stepped, found).aggregate_train(1, [reply(2, [0.0])])


def test_a_client_that_is_drawn_twice_counts_once_in_scaffolds_variate():
    """It counts twice in the mean of the models: (1 + 3 + 3) / 3.

    The changes 1 and 5 of two equal clients of four, of whom the others count with zero: c = (1 + 5) / 4.
    """
    server = Scaffold(server_learning_rate=1.0)
    (message, *_) = configure(server)
    assert message.content["control-variate"]["w"].numpy().tolist() == [0.0] * 3
    changes = {2: 1.0, 3: 5.0}
    replies = [reply(i, np.full(3, 2.0 * i - 3), **{"control-variate-change": {"w": [changes[i]] * 3}}) for i in (2, 3)]
    arrays, metrics = server.aggregate_train(1, [*replies, replies[1]])
    assert arrays["w"].numpy() == pytest.approx([7 / 3] * 3)
    (message, *_) = configure(server)
    assert message.content["control-variate"]["w"].numpy().tolist() == [1.5] * 3
    assert metrics["variate_norm"] == pytest.approx(1.5 * np.sqrt(3))


def test_scaffolds_norm_is_that_of_the_mean_of_what_clients_keep(run):
    result = run("strategy=scaffold", "federation.fraction_train=1", "federation.num_rounds=2", "local.epochs=1")
    weights = [len(rows) for rows in result.experiment.data.train]
    kept = [result.experiment.grid.states[i + 2]["kept/control-variate"] for i in range(len(weights))]
    mean = [np.average([record[name].numpy() for record in kept], axis=0, weights=weights) for name in kept[0]]
    norm = np.linalg.norm(np.concatenate([each.ravel() for each in mean]))
    assert result.rows[-1]["train/variate_norm"] == pytest.approx(norm, rel=1e-5)  # c is a sum of changes in float32


@pytest.fixture(scope="module")
def outsiders(tmp_path_factory):
    """Return a folder with strategies as others write them, and a model with BatchNorm."""
    folder = tmp_path_factory.mktemp("outsiders")
    (folder / "outsiders_servers.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
            from torch import nn
            from fedresearch.strategies.server import ServerUpdate

            class PartOfTheWay(ServerUpdate):
                def __init__(self, share, **options):
                    super().__init__(**options)
                    self.share = share

                def step(self, x, mean, replies):
                    return {name: x[name] + self.share * (mean[name] - x[name]) for name in x}

            def clipped(norm, **options):
                return DifferentialPrivacyServerSideFixedClipping(PartOfTheWay(0.5, **options), 0.0, norm, 1)

            class Ledger:
                def __init__(self):
                    self.seen = {}

            class Remembering(ServerUpdate):
                "Keeps numbers, arrays and an object of its own, and draws."

                def __init__(self, **options):
                    super().__init__(**options)
                    self.momentum, self.ledger, self.log = {}, Ledger(), []

                def send(self, x):
                    self.log.append(np.random.random())
                    return {"age": len(self.log), "momentum": self.momentum}

                def step(self, x, mean, replies):
                    for node_id, loss in zip(replies.node_ids, replies.metrics["train_loss"]):
                        self.ledger.seen[node_id] = self.ledger.seen.get(node_id, 0.0) + loss
                    for name in x:
                        self.momentum[name] = 0.5 * self.momentum.get(name, 0.0) + mean[name] - x[name]
                    noise = 1e-3 * np.random.random() * self.server_round
                    return {name: x[name] + self.momentum[name] + noise for name in x}

                def diagnostics(self):
                    return {"seen": sum(self.ledger.seen.values()), "drawn": sum(self.log)}

            class Wrong(ServerUpdate):
                def __init__(self, how, **options):
                    super().__init__(**options)
                    self.how = how

                def step(self, x, mean, replies):
                    name = min(x)
                    if self.how == "shape":
                        return {**mean, name: x[name][..., None]}
                    if self.how == "column":
                        return mean
                    return {(name[1:] if key == name else key): value for key, value in mean.items()}

                def diagnostics(self):
                    return {"loss": 1.0} if self.how == "column" else {}

            class Normed(nn.Sequential):
                def __init__(self, input_shape, num_classes):
                    layers = nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_classes)
                    super().__init__(nn.Flatten(), *layers)
            """
        )
    )
    for path, text in {
        "model/normed": "_target_: outsiders_servers.Normed",
        "strategy/part": "defaults: [_cohort, _self_]\nserver: {_target_: outsiders_servers.PartOfTheWay, share: 0.5}",
        "strategy/remembering": "defaults: [_cohort, _self_]\nserver: {_target_: outsiders_servers.Remembering}",
        "strategy/wrong": "defaults: [_cohort, _self_]\nserver: {_target_: outsiders_servers.Wrong, how: shape}",
        "strategy/clipped": "defaults: [_cohort, _self_]\nserver: {_target_: outsiders_servers.clipped, norm: 1e9}",
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / f"{path}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


SMALL = ["model=normed", "federation.num_rounds=2", "federation.num_supernodes=4", "local.epochs=null", "local.steps=2"]
SMALL += ["local.batch_size=0", "dtype=float64", "federation.fraction_train=1"]


def test_an_outsiders_step_is_for_parameters_alone(run, outsiders):
    """Half of FedAvg's step; the running statistics are FedAvg's, bit for bit, after a round."""
    options = [*SMALL, "federation.num_rounds=1"]
    fedavg, half = (run(*options, f"strategy={name}", config_dir=outsiders) for name in ("fedavg", "part"))
    for name, x in fedavg.experiment.initial_arrays.items():
        if name in ("2.running_mean", "2.running_var", "2.num_batches_tracked"):
            assert half.arrays[name].tolist() == fedavg.arrays[name].tolist()
        else:
            np.testing.assert_allclose(half.arrays[name], (x.numpy() + fedavg.arrays[name]) / 2, rtol=0, atol=1e-12)


def test_flowers_wrappers_wrap_a_server_half(run, outsiders):
    """Clipped at 1e9 it is as unwrapped, up to rounding; at 0.01, half of a mean of four such updates is no longer."""
    plain, wrapped, short = (
        run(*SMALL, *words, config_dir=outsiders)
        for words in (["strategy=part"], ["strategy=clipped"], ["strategy=clipped", "strategy.server.norm=0.01"])
    )
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(wrapped.arrays[name], array, rtol=0, atol=1e-10)
    assert all(0 < row["update/norm"] <= 0.005 * (1 + 1e-9) for row in short.rows)
    assert plain.rows[0]["update/norm"] > 0.01


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("shape", r"the strategy's aggregate must have 1.bias of shape \(6,\), got \(6, 1\)"),
        ("name", r"the strategy's aggregate must have the arrays of the global model; different: .bias, 1.bias"),
        ("column", r"the strategy's metric train_loss would be the column train/loss, which exists already; rename it"),
    ],
)
def test_a_step_that_does_not_fit_the_model_or_the_row_is_refused(run, outsiders, how, said):
    with pytest.raises(InputError, match=said):
        run(*SMALL, "strategy=wrong", f"strategy.server.how={how}", config_dir=outsiders)


@pytest.fixture(scope="module")
def undisturbed(outsiders, tmp_path_factory):
    return conduct(tmp_path_factory.mktemp("undisturbed") / "run", *REMEMBERING, config_dir=outsiders)


REMEMBERING = ["strategy=remembering", "sampling=proportional"]


def test_an_outsiders_numbers_are_columns(undisturbed):
    _, *rows = rows_of(undisturbed)  # round 0 has no strategy
    assert all(0 < row["train/drawn"] < row["round"] for row in rows)
    assert [row["train/seen"] for row in rows] == sorted(row["train/seen"] for row in rows)


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_an_outsiders_state_is_resumed_to_the_same_bits(tmp_path, outsiders, undisturbed, checkpoint):
    resumed = killed(undisturbed, tmp_path / "resumed", checkpoint=checkpoint, row=3)
    conduct(resumed, *REMEMBERING, config_dir=outsiders)
    assert outcome(resumed) == outcome(undisturbed)


@pytest.mark.slow
def test_an_outsiders_server_has_the_same_bits_on_workers(tmp_path, outsiders, undisturbed):
    elsewhere = conduct(tmp_path / "run", *REMEMBERING, "hardware=workers", config_dir=outsiders)
    assert outcome(elsewhere) == outcome(undisturbed)
