"""A round's replies as one block: the same messages, means and failures as one message after another."""

import functools

import numpy as np
import pytest
import torch
from flwr.app import Metadata, MetricRecord, RecordDict

from fedresearch.errors import InputError
from fedresearch.federation import client_app, flower, update_sums
from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.layout import Layout
from fedresearch.federation.records import array_record
from fedresearch.federation.stack import FoldedReplies, StackedReplies
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.local.train import LocalTrainer
from tests.directories import conduct, rows_of

MODEL = array_record({"w": np.zeros((2, 2), np.float32), "count": np.array(0), "b": np.zeros(1, np.float32)})


def reply(node_id, value, num_examples=1, **records):
    """A client whose numbers are its value."""
    arrays = {name: np.full(array.shape, value, array.dtype) for name, array in MODEL.items()}
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": value / 2})
    content = {name: array_record(record) for name, record in {"arrays": arrays, **records}.items()}
    metadata = Metadata(1, f"{node_id}", node_id, 1, "", "", 0.0, 1.0, "train")
    return flower.message(metadata, RecordDict({**content, "metrics": metrics}))


def test_a_row_holds_the_parameters_before_all_else_and_by_dtype():
    layout = Layout(MODEL, frozenset({"b"}))
    assert layout.num_columns == {np.dtype("f4"): 5, np.dtype("i8"): 1}
    assert layout.num_parameters == {np.dtype("f4"): 1, np.dtype("i8"): 0}
    assert [*layout.places] == [*MODEL]
    arrays = array_record({"w": np.array([[1, 2], [3, 4]], np.float32), "count": np.array(7), "b": np.ones(1, "f4")})
    row = layout.row(arrays)
    assert row[np.dtype("f4")].tolist() == [[1, 1, 2, 3, 4]]
    assert row[np.dtype("i8")].tolist() == [[7]]


def test_messages_of_a_block_are_those_of_which_it_was_made():
    replies = [reply(2, 5, 3, variate={"v": np.ones(2)}), reply(4, 7, 1, variate={"v": np.zeros(2)})]
    stack = StackedReplies.of(replies)
    assert len(stack) == 2
    for made, given in zip(stack, replies, strict=True):
        assert made.metadata.src_node_id == given.metadata.src_node_id
        assert made.content.keys() == given.content.keys()
        assert made.content["metrics"] == given.content["metrics"]
        for record in ("arrays", "variate"):
            for name, array in given.content[record].items():
                same = made.content[record][name].numpy()
                assert (same.dtype, same.tolist()) == (array.numpy().dtype, array.numpy().tolist())
    assert stack[1] is stack[1]
    assert stack[-1] is stack[1]
    with pytest.raises(IndexError):
        stack[2]


def test_replies_are_taken_at_places_and_may_occur_twice():
    stack = StackedReplies.of([reply(node, node, node) for node in (2, 3, 5)])
    assert stack.take([0, 1, 2]) is stack
    taken = stack.take([2, 0, 2])
    assert taken.node_ids == [5, 2, 5]
    assert taken.array("b").tolist() == [[5], [2], [5]]
    assert taken.metrics["num-examples"] == [5, 2, 5]
    assert [message.content["arrays"]["count"].numpy() for message in taken] == [5, 2, 5]
    assert taken[0].content is not taken[2].content


def test_a_block_of_fewer_arrays_has_the_same_values():
    fewer = StackedReplies.of([reply(2, 5), reply(3, 6)]).only({"w"})
    assert [*fewer[1].content["arrays"]] == ["w"]
    assert fewer.array("w").tolist() == [[[5, 5], [5, 5]], [[6, 6], [6, 6]]]


def test_nobody_writes_into_a_block():
    stack = StackedReplies.of([reply(2, 5)])
    for array in (stack.array("w"), stack[0].content["arrays"]["w"].held):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            reply(3, 1, variate={"v": np.ones(1)}),
            "must have the records of the round's first reply; different: variate",
        ),
        (reply(3, 1), "variate"),
    ],
)
def test_replies_with_other_records_are_refused(second, said):
    first = reply(2, 1) if "variate" in second.content else reply(2, 1, variate={"v": np.ones(1)})
    with pytest.raises(InputError, match=said):
        StackedReplies.of([first, second])


def test_a_broadcasts_messages_share_one_content_and_are_made_when_read():
    content = RecordDict({"arrays": MODEL})
    flower.be_server(run_id=1)
    messages = Broadcast(content, [2, 3, 9], "train")
    assert len(messages) == 3
    assert not messages.is_read
    assert [message.metadata.dst_node_id for message in messages[1:]] == [3, 9]
    assert messages.is_read
    assert messages[0].content is messages[2].content
    assert messages[-1] is messages[2]


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg", "sampling=proportional"],  # some clients are drawn twice
        ["strategy=fedadam"],
        ["strategy=multikrum", "federation.fraction_train=1"],
        ["strategy=scaffold"],
        ["strategy=ditto", "local.keep_optimizer_state=true", "optimizer.momentum=0.9"],
    ],
)
def test_blocks_and_messages_give_the_same_run(tmp_path, monkeypatch, words):
    blocks = rows_of(conduct(tmp_path / "blocks", *words, "federation.num_rounds=2"))
    monkeypatch.setattr(client_app.Clients, "stacks", False)
    assert rows_of(conduct(tmp_path / "messages", *words, "federation.num_rounds=2")) == blocks


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_client_that_fails_leaves_the_replies_of_the_others(tmp_path, monkeypatch, nth):
    words = "strategy=scaffold", "federation.max_failures=1", "federation.num_rounds=2"
    rows, train = [], LocalTrainer.__call__
    for stacks in (True, False):
        calls = []

        def failing(trainer, task, calls=calls):
            calls.append(task.partition_id)
            if len(calls) == 3 + nth:  # of the cohort of 3 in round 2
                raise ArithmeticError("not today")
            return train(trainer, task)

        monkeypatch.setattr(LocalTrainer, "__call__", failing)
        monkeypatch.setattr(client_app.Clients, "stacks", stacks)
        with monkeypatch.context() as patch:
            patch.setattr("fedresearch.experiment.run.prepare", lambda *_, **__: None)
            rows.append(rows_of(conduct(tmp_path / str(stacks), *words)))
        assert len(calls) == 6
    assert rows[0] == rows[1]
    assert [row["clients/failed"] for row in rows[0][1:]] == [0, 1]


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=fedprox", "strategy.weighted_by=uniform"],
        ["hardware=batched", "hardware.compile=false", "hardware.chunk=2"],
        pytest.param(["hardware=workers", "hardware.workers=2"], marks=pytest.mark.slow),
    ],
)
def test_large_replies_are_folded_with_the_same_bits(tmp_path, monkeypatch, words):
    """Replies are forgotten once they are added; with a failure allowed they are kept. The same numbers."""
    monkeypatch.setattr(update_sums, "_MOST_TOGETHER", 1000)
    words = [*words, "federation.fraction_train=1", "federation.num_rounds=2"]  # blocks of two and of one
    folded = []
    monkeypatch.setattr(FoldedReplies, "mean", record_calls(FoldedReplies.mean, folded))
    rows = rows_of(conduct(tmp_path / "folded", *words))
    assert folded
    folded.clear()
    assert rows_of(conduct(tmp_path / "kept", *words, "federation.max_failures=1")) == rows
    assert not folded


def test_folded_replies_are_measured_as_together(tmp_path, monkeypatch):
    words = "federation.fraction_train=1", "federation.num_rounds=2"
    together = rows_of(conduct(tmp_path / "together", *words))
    monkeypatch.setattr(update_sums, "_MOST_TOGETHER", 1000)
    for one, other in zip(together[1:], rows_of(conduct(tmp_path / "folded", *words))[1:], strict=True):
        assert one.pop("update/cosine") == pytest.approx(other.pop("update/cosine"), rel=1e-12)
        assert one == other


def test_a_failure_ends_a_folded_round(tmp_path, monkeypatch):
    monkeypatch.setattr(update_sums, "_MOST_TOGETHER", 1000)
    train = LocalTrainer.__call__

    def failing(trainer, task):
        if task.partition_id == 3 and task.server_round == 2:
            raise ArithmeticError("not today")
        return train(trainer, task)

    monkeypatch.setattr(LocalTrainer, "__call__", failing)
    with pytest.raises(InputError, match="the client of partition 3 failed in round 2"):
        conduct(tmp_path / "run", "federation.fraction_train=1")


def record_calls(function, calls):
    def recorded(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return recorded


@pytest.mark.parametrize("most_together", [2**26, 100])
@pytest.mark.parametrize(
    "words",
    [["sampling=proportional"], ["strategy=multikrum"], ["strategy=fedprox"], ["strategy=scaffold"]],
)
def test_rows_that_stay_on_a_device_give_the_same_up_to_rounding(tmp_path, monkeypatch, words, most_together):
    """The CPU stands for a GPU."""
    monkeypatch.setattr(update_sums, "_MOST_TOGETHER", most_together)
    words = [*words, "federation.num_rounds=2", "federation.fraction_train=1", "model=logistic", "dtype=float64"]
    expected = rows_of(conduct(tmp_path / "memory", *words))
    on_device = functools.partial(Layout.rows_on, device=torch.device("cpu"))
    monkeypatch.setattr(OrderedGrid, "_rows", lambda _, layout, num_rows: on_device(layout, num_rows=num_rows))
    for row, same in zip(rows_of(conduct(tmp_path / "device", *words)), expected, strict=True):
        assert row.keys() == same.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(same[name], rel=1e-9, abs=1e-12)
