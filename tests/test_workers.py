"""Clients in processes of their own: the same bits, whoever runs them and whoever dies."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedresearch.federation.records import array_record
from fedresearch.hardware import workers
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.hardware.pool import Answer
from fedresearch.hardware.shared import SharedObject, load_shared, map_shared
from fedresearch.hardware.workers import WorkerGrid

pytestmark = pytest.mark.slow

SMALL = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=1"]


class Counting(ClientApp):
    """Counts a client's messages in its state; does to its worker, or raises, what the message says."""

    def __init__(self):
        super().__init__()
        self.query()(self._count)

    def __reduce__(self):
        return Counting, ()

    def _count(self, message, context):
        partition_id = context.node_config["partition-id"]
        count = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
        context.state["calls"] = MetricRecord({"n": count})
        config = message.content["config"]
        assert "seen" not in config, "another client's copy"
        config["seen"] = True
        message.content["arrays"]["x"] = message.content["arrays"]["x"]
        if config["raise"] == partition_id:
            raise ValueError("told to")
        if config["exit"] == partition_id:
            sys.exit("told to")
        if config["unpicklable"] == partition_id:
            reply = Message(RecordDict(), reply_to=message)
            reply.__dict__["mine"] = lambda: None
            return reply
        if config["die"] == partition_id and not (config["once"] and Path(config["once"]).exists()):
            Path(config["once"] or os.devnull).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while config["loop"] == partition_id:
            pass
        if config["hang"] == partition_id:
            ctypes.PyDLL(None).sleep(1000)  # holds Python's lock, so that no other thread runs
        x = message.content["arrays"]["x"].numpy()
        content = RecordDict(
            {
                "metrics": MetricRecord({"n": count, "partition": partition_id, "pid": os.getpid()}),
                "arrays": array_record({"x": x + partition_id}),
            }
        )
        return Message(content, reply_to=message)


def ask(grid, nodes=None, **orders):
    config = ConfigRecord(
        {"raise": -1, "exit": -1, "unpicklable": -1, "die": -1, "loop": -1, "hang": -1, "once": "", **orders}
    )
    content = RecordDict({"config": config, "arrays": array_record({"x": np.arange(50_000.0)})})
    nodes = grid.get_node_ids() if nodes is None else nodes
    replies = list(grid.send_and_receive(messages=[Message(content, node, "query") for node in nodes]))
    assert "seen" not in config
    return replies


def metrics(replies, key):
    return [reply.content["metrics"][key] for reply in replies]


@pytest.fixture(params=["in process", "workers"])
def make_grid(request):
    def make(num_supernodes, workers=2):
        app = Counting()
        if request.param == "workers":
            return WorkerGrid(app, num_supernodes, workers)
        return InProcessGrid(app, num_supernodes)

    return make


def test_order_and_state_are_kept(make_grid):
    with make_grid(5) as grid:
        nodes = grid.get_node_ids()
        first = ask(grid)
        assert metrics(first, "partition") == [0, 1, 2, 3, 4]
        assert [reply.metadata.src_node_id for reply in first] == list(nodes)
        for i, reply in enumerate(first):
            np.testing.assert_array_equal(reply.content["arrays"]["x"].numpy(), np.arange(50_000.0) + i)
        assert metrics(ask(grid, nodes[1:3]), "n") == [2, 2]
        assert metrics(ask(grid), "n") == [2, 3, 3, 2, 2]


def test_threads_that_send_at_once_get_their_own_replies(make_grid):
    with make_grid(6) as grid, ThreadPoolExecutor(6) as threads:
        for n in (1, 2):
            replies = threads.map(lambda node: ask(grid, [node])[0], grid.get_node_ids())
            assert [(r.content["metrics"]["partition"], r.content["metrics"]["n"]) for r in replies] == [
                (partition, n) for partition in range(6)
            ]


def test_a_client_that_raises_is_an_error_reply_and_its_state_is_as_before(make_grid):
    with make_grid(3) as grid:
        ask(grid)
        replies = ask(grid, **{"raise": 1})
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert replies[1].error.code == 2
        assert "ValueError: told to" in replies[1].error.reason
        assert metrics(ask(grid), "n") == [3, 2, 3]


@pytest.mark.parametrize(
    ("orders", "reason"),
    [({"exit": 1}, "SystemExit: told to"), ({"unpicklable": 1}, "pickle")],
    ids=["ends itself", "cannot be sent"],
)
def test_what_else_a_client_may_do_is_an_error_reply_too(make_grid, orders, reason):
    with make_grid(3) as grid:
        replies = ask(grid, **orders)
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert reason in replies[1].error.reason
        assert metrics(ask(grid), "n") == [2, 1, 2]


def test_a_clients_messages_are_answered_one_after_another(make_grid):
    with make_grid(3) as grid:
        one, other, _ = grid.get_node_ids()
        assert metrics(ask(grid, [other, one, other, other]), "n") == [1, 1, 2, 3]
        assert metrics(ask(grid), "n") == [2, 4, 1]


def test_all_that_a_dead_worker_had_in_hand_runs_again(tmp_path):
    """One worker, given two of twenty clients at a time; it dies at the first, the sixth and the last."""
    with WorkerGrid(Counting(), 20, workers=1) as grid:
        for i, partition_id in enumerate((0, 5, 19)):
            replies = ask(grid, die=partition_id, once=str(tmp_path / str(partition_id)))
            assert metrics(replies, "n") == [i + 1] * 20


def test_a_worker_that_dies_at_its_start_is_replaced(monkeypatch):
    share, killed = workers._Process._share, []

    def kill_first(self, shared):
        if len(killed) < 2:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.join()
        share(self, shared)

    monkeypatch.setattr(workers._Process, "_share", kill_first)
    with WorkerGrid(Counting(), 4, workers=2) as grid:
        assert metrics(ask(grid), "n") == [1] * 4
    assert len(killed) == 2


def test_the_longest_clients_come_first(compose, monkeypatch):
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    options = ["hardware=workers", "hardware.workers=1", "tracker=none", *SMALL]
    experiment = Experiment(*compose(*options, "federation.fraction_train=1"))
    prepare(experiment)
    given = []
    submit = workers._Process.submit

    def note(self, published, task):
        given.append(task.context.node_config["partition-id"])
        submit(self, published, task)

    monkeypatch.setattr(workers._Process, "submit", note)
    with experiment.grid as grid:
        content = RecordDict({"config": ConfigRecord({}), "arrays": experiment.initial_arrays})
        grid.send_and_receive(messages=[Message(content, node, "evaluate") for node in grid.get_node_ids()])
    data = experiment.data
    sizes = [len(data.train[i]) + len(data.validation[i]) for i in given]
    assert sorted(given) == list(range(6))
    assert sizes == sorted(sizes, reverse=True)


def test_the_clients_are_spread_over_processes_other_than_this():
    with WorkerGrid(Counting(), 8, workers=2) as grid:
        pids = {pid for _ in range(5) for pid in metrics(ask(grid), "pid")}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_client_whose_worker_dies_runs_again_from_the_state_it_had(tmp_path, caplog):
    with WorkerGrid(Counting(), 6, workers=2) as grid:
        ask(grid)
        replies = ask(grid, die=3, once=str(tmp_path / "dead"))
        assert (tmp_path / "dead").exists()
        assert metrics(replies, "n") == [2] * 6
        assert metrics(replies, "partition") == list(range(6))
        assert len(set(metrics(ask(grid), "pid"))) == 2
    said = [record.message for record in caplog.records]
    assert said == ["a worker died (killed by signal 9, Killed: out of memory?) while it ran the client of partition 3"]


def test_a_client_whose_workers_keep_dying_is_an_error_reply():
    with WorkerGrid(Counting(), 4, workers=2) as grid:
        replies = ask(grid, die=2)
        assert [reply.has_error() for reply in replies] == [False, False, True, False]
        assert (
            replies[2].error.reason == "3 workers died while they ran it (killed by signal 9, Killed: out of memory?)"
        )
        assert metrics(ask(grid), "n") == [2, 2, 1, 2]


def test_a_worker_killed_between_rounds_is_replaced():
    with WorkerGrid(Counting(), 4, workers=2) as grid:
        pids = set(metrics(ask(grid), "pid"))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        replies = ask(grid)
        assert metrics(replies, "n") == [2] * 4
        assert not pids & set(metrics(replies, "pid"))


def test_clients_that_do_not_answer_are_named_once_and_ctrl_c_ends_them(monkeypatch):
    from fedresearch.hardware import pool, workers

    said = []

    def interrupt(text, *values):
        said.append(text % values)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(pool.log, "warning", interrupt)
    monkeypatch.setattr(workers, "_STOP_TIMEOUT_S", 1)
    with WorkerGrid(Counting(), 6, workers=3) as grid:
        ask(grid)
        grid.warn_after_s = 0.5
        with pytest.raises(KeyboardInterrupt):
            ask(grid, loop=1, hang=4)
        processes = {worker._process.pid: worker._process for worker in grid._workers}
    for process in processes.values():
        process.join(10)
        assert not process.is_alive()
    assert sorted(line[:36] for line in said) == [
        "the client of partition 1 has not an",
        "the client of partition 4 has not an",
    ]
    for line in said:
        assert int(line.partition("(process ")[2].partition(")")[0]) in processes
        assert line.endswith("wait, or end the run with Ctrl-C twice")


def test_workers_leave_it_to_the_main_process_to_stop():
    """Schedulers and terminals send a signal to all of a job at once."""
    with WorkerGrid(Counting(), 4, workers=2) as grid:
        pids = {worker._process.pid for worker in grid._workers}
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            for pid in pids & {*metrics(ask(grid), "pid")}:  # those that have started
                os.kill(pid, number)
            assert {*metrics(ask(grid), "pid")} <= pids, number
            assert {worker._process.pid for worker in grid._workers} == pids, number


class Parent(ClientApp):
    """Starts a process, as a DataLoader does."""

    def __call__(self, message, context):
        process = multiprocessing.get_context("fork").Process(target=os.getpid)
        process.start()
        process.join()
        return Message(RecordDict({"metrics": MetricRecord({"code": process.exitcode})}), reply_to=message)


def test_a_client_may_start_processes():
    with WorkerGrid(Parent(), 1, workers=1) as grid:
        assert metrics(ask(grid), "code") == [0]


def test_shared_memory_is_mapped_and_not_copied():
    array = np.arange(1000.0)
    shared = SharedObject({"a": array, "b": [array[:3], "text"]})
    one, other = (load_shared(map_shared(os.dup(shared.fd), shared.sizes)) for _ in range(2))
    shared.close()
    np.testing.assert_array_equal(one["a"], array)
    assert one["b"][1] == "text"
    one["a"][0] = 7.0  # what is written stays with who writes it
    assert other["a"][0] == array[0] == 0.0
    assert not one["a"].flags.owndata


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "qfedavg", "fedper", "ditto"])
def test_every_number_of_workers_gives_the_same_bits(run, strategy):
    options = [*SMALL, f"strategy={strategy}"]
    expected = run(*options).numbers()
    for num_workers in (1, 3):
        assert run(*options, "hardware=workers", f"hardware.workers={num_workers}").numbers() == expected


def test_worker_deaths_do_not_change_a_number(run, monkeypatch):
    """One of two workers is killed each time that a reply comes in from it, three times in all."""
    options = [*SMALL, "federation.fraction_train=1", "strategy=scaffold"]
    expected = run(*options).numbers()
    kills = []
    result = workers._Process.result

    def and_kill(self):
        reply = result(self)
        if len(kills) < 3 and len(self.tasks) > 0:
            kills.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
        return reply

    monkeypatch.setattr(workers._Process, "result", and_kill)
    assert run(*options, "hardware=workers", "hardware.workers=2").numbers() == expected
    assert len(kills) == 3


def test_a_worker_that_answers_as_the_main_process_ends_says_nothing(monkeypatch, capfd):
    class Gone:
        def send_bytes(self, answer):
            raise BrokenPipeError

    def receive(connection, inbox):
        for kind in ("app", "content"):
            inbox.put((kind, [memoryview(pickle.dumps(None))]))
        inbox.put(Answer(None, SimpleNamespace(state=RecordDict())))

    for name, stub in {"_receive": receive, "answer": lambda *_: None, "flower.message": lambda *_: None}.items():
        monkeypatch.setattr(f"fedresearch.hardware.workers.{name}", stub)
    process = multiprocessing.get_context("fork").Process(target=workers._work, args=(Gone(), 1))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
