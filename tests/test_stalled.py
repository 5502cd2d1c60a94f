"""Rounds that train nothing: the loop ends, the run says so with a status of its own, and resume tries again."""

import importlib
import math
import textwrap
import traceback
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedresearch.config.cohorts import shortages, unprotected
from fedresearch.errors import InputError, raised_line
from fedresearch.experiment.advice import _warn_of_small_partitions
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.recorder import explain_failure
from fedresearch.federation.hooks import Hooks
from fedresearch.federation.records import array_record, sha256
from fedresearch.federation.rounds import ClientsFailed, RoundLoop, Stalled
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.runs.record import read_record
from tests.directories import conduct, outcome, rows_of

START = array_record({"w": np.zeros(2, np.float32)})


def app_of(fails=(), nonfinite=()):
    """A ClientApp whose client i sends i + 1, or fails, or sends a NaN; it evaluates to i."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = context.node_config["partition-id"]
        if i in fails:
            raise ValueError("told to")
        w = np.full(2, np.nan if i in nonfinite else i + 1, np.float32)
        metrics = MetricRecord({"num-examples": 1, "uniform": 1, "num-steps": 1, "train_loss": float(i)})
        return Message(RecordDict({"arrays": array_record({"w": w}), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        i = context.node_config["partition-id"]
        if i in fails:
            raise ValueError("told to")
        metrics = MetricRecord({"num-examples": 1, "uniform": 1, "eval_loss": float(i)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def rounds_of(strategy=None, app=None, cohort=(0, 1, 2), needs=0, num_rounds=2, evaluating=(), cohorts=None, **options):
    """Run the loop on clients that take no time, and return its rows."""
    rows = []
    loop = RoundLoop(
        hooks=Hooks(strategy or FedAvg(), seed=0),
        num_rounds=num_rounds,
        target_accuracy=None,
        train_cohort=lambda server_round: cohorts[server_round] if cohorts else cohort,
        evaluate_cohort=lambda server_round: evaluating,
        num_available=lambda server_round: 5,
        evaluate_initial=False,
        evaluate_every=1,
        parameters={"w"},
        shortage=lambda num_clients: f"it needs {needs} clients" if num_clients < needs else "",
        client_config=lambda server_round: {"lr": 0.1},
        evaluate=lambda arrays: {},
        metrics={},
        weighted_by="num-examples",
        log=lambda row, arrays: rows.append(row),
        log_clients=None,
        log_failure=lambda *_: None,
        **{"max_failures": 9, "nonfinite": "drop", **options},
    )
    with InProcessGrid(app or app_of(), 5) as grid:
        loop.run(grid, START)
    return rows


class Nothing(FedAvg):
    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        return (mean if server_round < 2 else None), metrics


class Silent(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": Nothing()}, r"round 2 trained nothing: the strategy aggregated none of 3 replies"),
        ({"strategy": Silent()}, r"round 1 trained nothing: a round needs a client, got the replies of 0 of 0$"),
        ({"app": app_of(fails=(0, 1, 2))}, r"needs a client, got the replies of 0 of 3 \(3 failed\)"),
        ({"app": app_of(nonfinite=(0, 1, 2))}, r"got the replies of 0 of 3 \(3 not finite, for which a smaller"),
        ({"app": app_of((0,), (1, 2))}, r"got the replies of 0 of 3 \(1 failed, 2 not finite, for which"),
        ({"needs": 3, "app": app_of(fails=(1,))}, r"it needs 3 clients, got the replies of 2 of 3 \(1 failed\)"),
        ({"needs": 3, "app": app_of((), (1,))}, r"it needs 3 clients, got the replies of 2 of 3 \(1 not finite"),
        ({"needs": 3, "cohort": (0, 1, 1, 1)}, r"it needs 3 clients, got the replies of 2 of 2$"),
    ],
)
def test_a_round_that_trains_nothing_ends_the_run(options, said):
    with pytest.raises(Stalled, match=said):
        rounds_of(**options)


def test_a_round_in_which_nobody_trains_leaves_the_model_and_the_strategy_as_they_are():
    """The clients that evaluate do so, and the next round trains."""

    class Counting(FedAvg):
        rounds: ClassVar = []

        def configure_train(self, server_round, *rest):
            self.rounds.append(server_round)
            return super().configure_train(server_round, *rest)

    idle, trained = rounds_of(Counting(), cohorts={1: [], 2: [1, 2]}, evaluating=(0, 3))
    assert Counting.rounds == [2]
    zero = {"clients/sampled", "clients/failed", "clients/dropped", "local/steps", "update/norm"}
    zero |= {f"comm/bytes_{way}{total}" for way in ("up", "down") for total in ("", "_total")}
    assert {name for name, value in idle.items() if value == 0} == zero
    assert idle.keys() & trained.keys() == idle.keys()
    assert trained.keys() - idle.keys() == {"train/loss", "update/cosine"}
    assert idle["model/sha256"] == sha256(START) != trained["model/sha256"]
    assert (idle["clients/available"], idle["clients/evaluated"]) == (5, 2)


def test_a_round_with_enough_replies_continues():
    rows = rounds_of(needs=2, app=app_of((0,)), cohort=(0, 1, 2))
    assert [row["update/norm"] for row in rows] == [pytest.approx(math.sqrt(2) * 2.5), 0]  # of 2 and 3: 2.5, again
    with pytest.raises(ClientsFailed):
        rounds_of(app=app_of((0,)), max_failures=0)


@pytest.mark.parametrize(("evaluating", "evaluated"), [((), 0), ((0,), 0), ((0, 3), 1), ((1, 2, 3), 3)])
def test_a_row_says_how_many_clients_evaluated(evaluating, evaluated):
    rows = rounds_of(app=app_of(fails=(0,)), evaluating=evaluating)
    assert [row["clients/evaluated"] for row in rows] == [evaluated] * 2
    measured = [i for i in evaluating if i]
    assert [row.get("clients/loss_mean") for row in rows] == [np.mean(measured) if measured else None] * 2


class Other(FedAvg):
    def aggregate_train(self, server_round, replies):
        return array_record({"w": np.zeros(3)}), None


def test_an_aggregate_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"the strategy's aggregate must have w of shape \(2,\), got \(3,\)"):
        rounds_of(Other())


class Measuring(FedAvg):
    def __init__(self, train, evaluate):
        super().__init__()
        self.measured = train, evaluate

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)[0], self.measured[0]

    def aggregate_evaluate(self, server_round, replies):
        return self.measured[1]


def test_what_a_strategy_measures_is_in_the_row_in_one_order():
    train = MetricRecord({"z": 2, "epsilon": 0.5, "num-steps": 3, "train_loss": 0.25, "a": [1.5, 2.0]})
    evaluate = MetricRecord({"gini": 0.1, "eval_loss": 0.75, "num-examples": 8, "personal/accuracy": 0.875})
    row = rounds_of(Measuring(train, evaluate), evaluating=(1,), num_rounds=1)[0]
    found = {
        key: value
        for key, value in row.items()
        if key.startswith(("train/", "clients/e", "clients/g", "personal")) or key == "clients/loss"
    }
    assert [*found.items()] == [
        ("train/a/0", 1.5),
        ("train/a/1", 2.0),
        ("train/epsilon", 0.5),
        ("train/loss", 0.25),
        ("train/z", 2),
        ("clients/evaluated", 1),
        ("clients/loss", 0.75),
        ("clients/gini", 0.1),
        ("personal/accuracy", 0.875),
    ]
    assert len(rounds_of(Measuring(None, None), evaluating=(1,))) == 2


@pytest.mark.parametrize(
    ("train", "evaluate", "said"),
    [
        (
            {"train_loss": 1.0, "loss": 2.0},
            {},
            "the strategy's metric train_loss would be the column train/loss, which",
        ),
        (
            {},
            {"evaluated": 3},
            "the strategy's metric evaluated would be the column clients/evaluated, which exists already",
        ),
        ({}, {"dropped": 3}, "metric dropped would be the column clients/dropped"),
        ({}, {"loss_mean": 3.0}, "metric loss_mean would be the column clients/loss_mean"),
        ({"a/0": 1, "a": [1]}, {}, "metric a/0 would be the column train/a/0"),
    ],
)
def test_a_strategy_replaces_no_column(train, evaluate, said):
    with pytest.raises(InputError, match=said):
        rounds_of(Measuring(MetricRecord(train), MetricRecord(evaluate)), evaluating=(1,))


@given(trim=st.floats(0, 0.5, exclude_max=True), num_clients=st.integers(0, 50))
def test_trimming_needs_as_many_clients_as_it_says(trim, num_clients):
    found = [needed for needed, _ in shortages({"server": {}, "trim": trim}, num_clients)]
    assert bool(found) == (trim > 0 and int(trim * num_clients) == 0)
    if found and trim > 1e-6:
        needed = int(found[0].split(" needs ")[1].split()[0])
        assert int(trim * needed) == 1
        assert int(trim * (needed - 1)) == 0


def test_a_rules_minimum_is_the_papers():
    krum = {"server": {"num_malicious_nodes": 2}, "min_cohort": [2, 3]}
    assert not [*unprotected(krum, "krum")]
    assert not [*unprotected({"server": {}}, "fedavg")]
    assert [*unprotected({"server": {"num_malicious_nodes": 0}}, "krum")] == [
        "strategy=krum with strategy.server.num_malicious_nodes=0 does not protect against malicious clients; "
        "try strategy.server.num_malicious_nodes=1"
    ]
    assert not [*shortages(krum, 7)]
    assert [*shortages(krum, 6)] == [
        ("strategy.server.num_malicious_nodes=2 needs 2 * 2 + 3 = 7 clients", "strategy.server.num_malicious_nodes=1")
    ]
    assert next(shortages(krum, 2))[1] == ""  # not even 0 attackers
    assert not [*shortages({"server": {}}, 0)]


def test_who_will_train_is_asked_before_round_1(run):
    """The partitioner makes three clients, which the config alone does not say."""
    few = ["partitioner=size", "partitioner.partition_sizes=[40,40,40]", "federation.num_supernodes=null"]
    few += ["strategy=krum", "strategy.server.num_malicious_nodes=1", "federation.fraction_train=1"]
    said = (
        r"needs 2 \* 1 \+ 3 = 5 clients, got the 3 that train in round 1, of 3 with samples; try strategy.server.num_"
    )
    with pytest.raises(InputError, match=said):
        run(*few)


def test_a_round_that_is_too_small_later_is_found_before_round_1(run, tmp_path, monkeypatch):
    (tmp_path / "sampling").mkdir()
    (tmp_path / "shrinking.py").write_text(
        "def shrink(*, sizes, eligible, cohort_size, server_round, seed):\n    return eligible[server_round - 1 :]\n"
    )
    (tmp_path / "sampling" / "shrinking.yaml").write_text("_target_: shrinking.shrink\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = ["strategy=multikrum", "federation.num_supernodes=6", "sampling=shrinking", "federation.fraction_train=1"]
    said = (
        "num_nodes_to_select=3 needs 3 clients, got the 2 that train in round 5, of 6 with samples; try more|strategy"
    )
    with pytest.raises(InputError, match=said):
        run(*options, config_dir=tmp_path)


def test_a_rule_that_scores_clients_sees_each_once(compose):
    """Of one client's update drawn twice, the other is nearest: at distance 0 it would win whatever it is."""
    few = ["federation.num_supernodes=4", "federation.fraction_train=1", "sampling=proportional"]
    plain, scored = (Experiment(*compose(*few, f"strategy={name}")) for name in ("fedavg", "krum"))
    drawn = [sorted(plain._cohort(server_round)) for server_round in range(1, 9)]
    assert any(len(set(ids)) < 4 for ids in drawn)
    assert [scored._cohort(server_round) for server_round in range(1, 9)] == [sorted(set(ids)) for ids in drawn]


@pytest.mark.parametrize(("evaluates", "warned"), [(True, True), (False, False)])
def test_that_nobody_can_evaluate_is_said(compose, caplog, evaluates, warned):
    data = Experiment(*compose("validation.fraction=0", "federation.fraction_evaluate=0")).data
    _warn_of_small_partitions(data, 1, evaluates)
    said = "no client holds a validation sample, so no client evaluates; try a larger validation.fraction"
    assert (said in caplog.messages) is warned


@pytest.fixture
def moody(tmp_path, monkeypatch):
    """Return a folder with a strategy that aggregates nothing in round 3 while a file is there, and that file."""
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "moody.yaml").write_text(
        f"defaults: [_cohort, _self_]\nserver: {{_target_: moody_strategy.Moody, path: {tmp_path / 'mood'}}}\n"
    )
    (tmp_path / "moody_strategy.py").write_text(
        textwrap.dedent(
            """
            from pathlib import Path
            from flwr.serverapp.strategy import FedAvg

            class Moody(FedAvg):
                def __init__(self, path, **options):
                    super().__init__(**options)
                    self.path = path

                def aggregate_train(self, server_round, replies):
                    if server_round == 3 and Path(self.path).exists():
                        return None, None
                    return super().aggregate_train(server_round, replies)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mood").touch()
    return tmp_path / "conf", tmp_path / "mood"


def test_a_stalled_run_says_so_and_resume_tries_the_round_again(tmp_path, moody):
    conf, mood = moody
    with pytest.raises(InputError, match=r"^round 3 trained nothing: .*; resume=.*run tries the round again$"):
        conduct(tmp_path / "run", "strategy=moody", config_dir=conf)
    stalled = read_record(tmp_path / "run")
    assert stalled["status"] == "stalled"
    assert stalled["error"].startswith("Stalled: round 3 trained nothing")
    assert stalled["result"]["round"] == 2
    assert [row["round"] for row in rows_of(tmp_path / "run")] == [0, 1, 2]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match=r"^round 3 trained nothing: "):
        conduct(tmp_path / "run", "strategy=moody", config_dir=conf)
    mood.unlink()
    conduct(tmp_path / "run", "strategy=moody", config_dir=conf)
    assert read_record(tmp_path / "run")["status"] == "finished"
    assert outcome(tmp_path / "run") == outcome(conduct(tmp_path / "other", "strategy=moody", config_dir=conf))


def test_the_line_of_a_failed_client_is_its_whole_error_and_its_place_in_the_users_own_code(tmp_path, monkeypatch):
    """An error of torch has several lines, and torch's own files are the last in its traceback."""
    path = tmp_path / "plugged.py"
    path.write_text(
        "import torch\n\ndef begin():\n    torch.nn.Linear(1, 1).load_state_dict({'bias': torch.zeros(1)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError) as raised:
        importlib.import_module("plugged").begin()
    text = "".join(traceback.format_exception(raised.value))
    failed = ClientsFailed(f"the client of partition 3 failed in round 2:\n{text}")
    (line,) = explain_failure(failed, Path("DIR"), 0.1).args
    assert line.startswith(
        "the client of partition 3 failed in round 2: RuntimeError: Error(s) in loading state_dict for Linear: "
        f'Missing key(s) in state_dict: "weight". in {path}, line 4; its traceback is in DIR/failures.jsonl; '
    )
    assert explain_failure(raised.value, Path("DIR"), 0.1).args == (
        'RuntimeError: Error(s) in loading state_dict for Linear: Missing key(s) in state_dict: "weight". '
        f"in {path}, line 4; FEDRESEARCH_FULL_ERROR=1 shows the traceback; fix it and resume with resume=DIR",
    )
    assert raised_line("one\ntwo") == "two"
    assert raised_line("") == ""
