"""A Flower app runs unmodified: the same bits on any hardware, Flower's errors, and mistakes reported in one line."""

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.generators import seeded_generators
from fedresearch.flower_app import command as flower_app
from fedresearch.flower_app.folder import FolderApp, FolderGrid
from fedresearch.flower_app.pyproject import AppFolder, node_config, run_config
from fedresearch.hardware.in_process import InProcessGrid
from tests import warm

pytestmark = pytest.mark.slow

APP = Path(__file__).parent / "flower_app"


def command(folder, *arguments, app=APP, **env):
    words = ["-m", "fedresearch.main", "app", app, *arguments]
    if "PYTHONHASHSEED" not in env:
        return warm.python(*words, cwd=folder, env={**os.environ, **env})
    words, env = [sys.executable, *words], {**os.environ, **env}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=env)


@pytest.mark.timeout(30)
def test_an_app_that_waits_for_more_nodes_than_exist_is_rejected():
    flower.be_server(run_id=1)
    grid = FolderGrid(InProcessGrid(ClientApp(), 4))
    with seeded_generators(3):
        messages = FedAvg(fraction_train=0.5).configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    drawn = [message.metadata.dst_node_id for message in messages]
    assert drawn == random.Random(3).sample(range(2, 6), 2)  # Flower's draw
    with pytest.raises(InputError, match=r"the app's strategy waits for 5 nodes, got 4; try --num-supernodes 5"):
        FedAvg(min_available_nodes=5).configure_train(1, ArrayRecord(), ConfigRecord(), grid)


def run(folder, *arguments, **options):
    """Run an app, and return what it printed and its final model."""
    done = command(folder, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, torch.load(folder / "final_model.pt")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def metrics(printed, name):
    return [float(value) for value in re.findall(rf"Aggregated MetricRecord: .*'{name}': ([\d.]+)", printed)]


def test_same_seed_same_bits_on_any_hardware_and_others_of_another_seed(tmp_path):
    printed, model = run(tmp_path)
    assert "clients [0, 1, 2, 3]\n" in printed, "the federation's size, and a query of the app's own"
    assert printed.count("[ROUND 1/2]") == 1, "Flower's lines, once"
    assert "Total array elements sent" in printed, "a client's mod"
    assert len(metrics(printed, "eval_acc")) == 2
    again, same_model = run(tmp_path, PYTHONHASHSEED="7")
    assert metrics(again, "train_loss") == metrics(printed, "train_loss")
    assert same(same_model, model)
    for workers in ("1", "3"):
        on_workers, same_model = run(tmp_path, "--hardware", "workers", "--workers", workers)
        assert metrics(on_workers, "eval_loss") == metrics(printed, "eval_loss")
        assert "Total array elements sent" in on_workers
        assert same(same_model, model)
    _, other_model = run(tmp_path, "--seed", "1")
    assert not same(other_model, model)


def test_the_run_config_and_the_state_reach_the_clients(tmp_path):
    """All clients train in all rounds, so each counts to three in its state; a rate of 0 does not change the model."""
    (tmp_path / "more.toml").write_text("lr = 0.0\n[optimizer]\nmomentum = 0\n")
    arguments = ["-c", "num-server-rounds=3 fraction-train=1.0", "--run-config", "more.toml", "--num-supernodes", "3"]
    printed, _ = run(tmp_path, *arguments)
    assert "clients [0, 1, 2]\n" in printed
    assert metrics(printed, "calls") == pytest.approx([1, 2, 3])
    assert metrics(printed, "eval_loss") == pytest.approx([metrics(printed, "eval_loss")[0]] * 3, rel=1e-6)


def test_a_client_that_raises_is_an_error_reply(tmp_path):
    printed, _ = run(tmp_path, "-c", "raises=1 fraction-train=1.0", "--hardware", "workers", "--workers", "2")
    assert printed.count("aggregate_train: Received 3 results and 1 failures") == 2
    assert re.search(r"The client of partition 1 failed:\n *Traceback \(most recent call last\):", printed)
    assert "ValueError: this client cannot" in printed
    assert metrics(printed, "calls") == pytest.approx([1, 2])


@pytest.fixture
def grid():
    """The Grid of an app whose three clients reply with their partitions, or raise an error on request."""
    app = ClientApp()

    @app.query()
    def answer(message, context):
        if "fail" in message.content:
            raise ValueError("this client cannot")
        return Message(RecordDict({"node": ConfigRecord(dict(context.node_config))}), reply_to=message)

    with InProcessGrid(app, num_supernodes=3) as opened:
        yield FolderGrid(opened)


def query(node_id, *names, **options):
    return Message(RecordDict({name: ConfigRecord() for name in names}), node_id, "query", **options)


@pytest.mark.parametrize("node_id", [0, 1, 5, 123456789])
def test_a_message_to_a_missing_node_is_rejected_before_any_reply(grid, node_id):
    """Messages to missing clients would share numbers with real ones: node 5's first with node 2's second."""
    with pytest.raises(
        ValueError, match=rf"^a message must be to a node id from 2 to 4 \(get_node_ids\(\)\), got {node_id}$"
    ):
        grid.push_messages([query(2), query(node_id)])
    ids = grid.push_messages([query(2), query(4)])
    assert [reply.content["node"]["partition-id"] for reply in grid.pull_messages(ids)] == [0, 2]
    assert not set(ids) & set(grid.push_messages([query(2), query(4)]))


def test_a_message_that_a_superlink_would_not_send_is_rejected(grid):
    message = query(2)
    with pytest.raises(ValueError, match="a message occurs twice in the list"):
        grid.push_messages([message, message])
    with pytest.raises(ValueError, match="a ttl > 0"):
        grid.push_messages([query(2, ttl=-1)])
    with pytest.raises(
        ValueError, match=r"a message must be to a node id from 2 to 4 \(get_node_ids\(\)\), got 1"
    ):  # the server, to which replies go
        grid.push_messages([Message(RecordDict(), reply_to=message)])


def test_an_unknown_id_and_one_that_was_pulled_have_flowers_error(grid):
    from flwr.common.constant import ErrorCode

    (known,) = grid.push_messages([query(3)])
    unknown, reply = grid.pull_messages(["nobody's", known, known])
    assert unknown.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert unknown.metadata.reply_to_message_id == "nobody's"
    assert reply.content["node"]["partition-id"] == 1
    (again,) = grid.pull_messages([known])
    assert again.error.code == ErrorCode.MESSAGE_UNAVAILABLE


@pytest.fixture
def logged(caplog, monkeypatch):
    """The records of Flower's logger, which does not propagate."""
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    return caplog


def test_the_traceback_of_a_client_is_shown(grid, logged):
    ok, failed = grid.send_and_receive([query(2), query(3, "fail")])
    assert not ok.has_error()
    assert failed.has_error()
    (line,) = logged.messages
    assert line.startswith("The client of partition 1 failed:\nTraceback (most recent call last):\n")
    assert 'raise ValueError("this client cannot")' in line


def test_ignored_time_limits_are_reported(grid, logged):
    grid.send_and_receive([query(2)], timeout=3600)  # Strategy.start's default
    assert not logged.messages
    for _ in range(2):
        (reply,) = grid.send_and_receive([query(2, ttl=5)], timeout=0.001)
        assert not reply.has_error()
    assert logged.messages == [
        f"{limit} is ignored here: the run waits for every client" for limit in ("timeout=0.001", "ttl=5")
    ]


def test_the_node_config_reaches_every_client(tmp_path, monkeypatch):
    (tmp_path / "configured.py").write_text(
        "from flwr.app import ConfigRecord, Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "app.query()(lambda m, c: Message(RecordDict({'node': ConfigRecord(dict(c.node_config))}), reply_to=m))\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    app = FolderApp(tmp_path, "configured:app", 0, node_config("""region="north sea" cores=4"""))
    with InProcessGrid(app, num_supernodes=2) as grid:
        replies = grid.send_and_receive([query(node_id) for node_id in grid.get_node_ids()])
    assert [dict(reply.content["node"]) for reply in replies] == [
        {"partition-id": i, "num-partitions": 2, "region": "north sea", "cores": 4} for i in range(2)
    ]


def test_a_server_that_raises_is_a_traceback(tmp_path):
    done = command(tmp_path, "--run-config", "num-server-rounds='two'")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "quickstart/server_app.py" in done.stderr


@pytest.fixture
def old_app(tmp_path):
    app = shutil.copytree(APP, tmp_path / "app")
    pyproject = (app / "pyproject.toml").read_text()
    for name in ("client_app", "server_app"):
        pyproject = pyproject.replace(f"quickstart.{name}", f"quickstart.old_{name}")
    (app / "pyproject.toml").write_text(pyproject)
    return app


def test_old_apps_run(tmp_path, old_app):
    """Their server sums in the order of a set of objects, so the sums are equal up to rounding."""
    printed, model = run(tmp_path, app=old_app)
    assert printed.count("aggregate_fit: received 4 results and 0 failures") == 2
    _, close_model = run(tmp_path, "--hardware", "workers", "--workers", "2", app=old_app)
    for name, array in model.items():
        torch.testing.assert_close(close_model[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_leaves_no_process(tmp_path):
    arguments = [APP, "--hardware", "workers", "--workers", "2", "-c", "num-server-rounds=100000"]
    words = ["-m", "fedresearch.main", "app", *arguments]
    with warm.Command(*words, cwd=tmp_path, env=dict(os.environ)) as process:
        while "[ROUND 2/" not in process.printed()[1]:
            assert process.poll() is None, process.printed()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes at once
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("something of it is left")


@pytest.fixture
def error_of(monkeypatch, tmp_path, capsys):
    """Return a function from the command line to its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def error_of(*arguments):
        with pytest.raises(SystemExit) as exit_:
            flower_app.main([*map(str, arguments)])
        assert exit_.value.code == 1
        return capsys.readouterr().err.removesuffix("\n")

    return error_of


def test_a_mistyped_command_line_is_reported_in_one_line(error_of, tmp_path):
    assert error_of() == "error: the following arguments are required: PATH; try fedresearch app --help"
    assert error_of(APP, "--hardware", "gpu").startswith(
        "error: argument --hardware: invalid choice: 'gpu' (choose from "
    )
    assert error_of(APP, "--num-supernodes", "0") == (
        "error: argument --num-supernodes: must be an integer >= 1, got 0; try fedresearch app --help"
    )
    assert error_of(APP, "--num-supernodes", "1000000000") == (
        "error: argument --num-supernodes: must be at most 1000000, got 1000000000; try fedresearch app --help"
    )
    assert (
        error_of(APP, "--workers", "2")
        == "error: --workers needs --hardware workers, got --hardware cpu; try --hardware workers"
    )
    assert error_of(tmp_path) == f"error: {tmp_path} has no pyproject.toml; try the folder that flwr run needs"
    (tmp_path / "app" / "client").mkdir(parents=True)
    (tmp_path / "app" / "pyproject.toml").touch()
    within = tmp_path / "app" / "client"
    assert error_of(within) == f"error: {within} has no pyproject.toml; try {tmp_path / 'app'}"
    assert error_of(APP, "--run-config", "lr=1", "num-server-rounds=2") == (
        "error: unrecognized arguments: num-server-rounds=2; try --run-config 'lr=1 num-server-rounds=2', "
        "with the quotes"
    )
    assert error_of(APP, "--lr", "1") == "error: unrecognized arguments: --lr 1; try fedresearch app --help"
    assert error_of(APP, "--node-config", "a=b") == (
        "error: --node-config cannot read a=b; values are numbers, true, false and quoted text, "
        """as in --node-config 'lr=0.1 name="text"'"""
    )
    assert error_of(APP, "--node-config", "partition-id=1") == (
        "error: --node-config must not have partition-id, which follows from --num-supernodes"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "num-rounds=5",
            "unknown key num-rounds in --run-config; try num-server-rounds; known: num-server-rounds, fraction-train, ",
        ),
        (
            "num-server-round=5",
            "unknown key num-server-round in --run-config; try num-server-rounds; known: num-server-rounds, ",
        ),
        ("lr", "--run-config has lr, which is not key=value; try --run-config 'key=value key=value'"),
        ("out=mine", "--run-config cannot read out=mine; values are numbers, true, false and quoted text, as in "),
        ("lr=[0.1]", "--run-config: lr must be a number, true, false or text, got [0.1]"),
        ("none.toml", "--run-config cannot read none.toml: No such file or directory"),
    ],
)
def test_an_invalid_run_config_is_reported_in_one_line(error_of, text, line):
    said = error_of(APP, "--run-config", text)
    assert said.startswith("error: ")
    assert line in said
    assert "\n" not in said


def test_the_run_config_is_read_as_flower_reads_it():
    defaults = AppFolder.read(APP).config
    text = """num-server-rounds=5 out="a b.pt" optimizer.momentum=0 lr=1e-3 raises='x y'"""
    from flwr.common.config import flatten_dict, parse_config_args

    assert run_config(defaults, [text]) == {**defaults, **parse_config_args([text])}
    assert run_config(defaults, ["lr=1", "lr=2"])["lr"] == 2
    assert flatten_dict({"optimizer": {"momentum": 0.9}}).items() <= defaults.items()


@pytest.mark.parametrize(
    ("client", "line"),
    [
        ("nowhere:app", "pyproject.toml: clientapp = \"nowhere:app\" cannot be imported: No module named 'nowhere'"),
        ("broken:app", "cannot be imported: No module named 'not_installed'"),
        ("there:ap", "there.py has no ap"),
        ("there:text", 'clientapp = "there:text" must be a ClientApp, got a str'),
        ("there", 'clientapp = "there" must be a module and an attribute; try "package.there:app"'),
    ],
)
def test_a_missing_app_is_reported_in_one_line(error_of, tmp_path, monkeypatch, client, line):
    (tmp_path / "pyproject.toml").write_text(f'[tool.flwr.app.components]\nserverapp = "s:app"\nclientapp = "{client}"')
    (tmp_path / "broken.py").write_text("import not_installed")
    (tmp_path / "there.py").write_text("text = 'an app'")
    monkeypatch.delitem(sys.modules, "there", raising=False)
    said = error_of(tmp_path)
    assert said.startswith(f"error: {tmp_path}")
    assert line in said
    assert "\n" not in said


def test_a_pyproject_of_another_project_is_rejected(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[tool.flwr.app.components]\nserverapp = "s:app"')
    with pytest.raises(InputError, match=r'names no clientapp in \[tool.*; try clientapp = "package.client_app:app"$'):
        AppFolder.read(tmp_path)
    pyproject.write_text("[tool")
    with pytest.raises(InputError, match=r"pyproject.toml is not TOML: "):
        AppFolder.read(tmp_path)
    pyproject.write_text('[tool.flwr.app.components]\nserverapp = "s:app"\nclientapp = "c:app"')
    assert AppFolder.read(tmp_path).num_supernodes is None
    start = pyproject.read_text() + '\n[tool.flwr.federations]\ndefault = "f"\n[tool.flwr.federations.f.options]\n'
    for wrong in ("0", "-1", '"ten"', "true", "2.5", "1000000000"):
        pyproject.write_text(f"{start}num-supernodes = {wrong}")
        with pytest.raises(InputError, match=r"num-supernodes must be an integer from 1 to 1000000, got "):
            AppFolder.read(tmp_path)
    assert AppFolder.read(APP).num_supernodes == 4
