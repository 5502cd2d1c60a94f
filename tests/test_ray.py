"""Clients on a Ray cluster: a real one of this machine, and one of two nodes of which one is killed."""

import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.hardware.cores import num_cores
from tests import warm
from tests.conftest import RAY
from tests.processes import LOOPBACK, descendants, listens, living

pytestmark = [pytest.mark.slow, *RAY]
ray = pytest.importorskip("ray")

TWENTY = ["federation.num_supernodes=20", "federation.num_rounds=3", "local.epochs=1"]


@pytest.fixture(autouse=True)
def _ended():
    yield
    ray.shutdown()


SEAMS = [
    *(
        "availability=bernoulli",
        "channel=[clip,topk,quantise]",
        "transform=[crop,flip,mixup]",
        "transform.crop.padding=1",
    ),
    *("metrics=[accuracy,macro_f1,per_class]", "evaluate_sampling=round_robin", "federation.fraction_evaluate=0.5"),
]


def test_an_actor_pool_gives_the_same_bits(run):
    options = [*TWENTY, "strategy=scaffold", *SEAMS]  # it keeps something on the clients
    assert run(*options, "hardware=ray").numbers() == run(*options).numbers()
    assert not ray.is_initialized()


def test_a_round_completes_with_the_same_bits_when_a_node_is_killed_in_its_midst(run, monkeypatch, caplog):
    """Two nodes of one core each, with a client on each. The second goes after round 2's first answer."""
    from ray._private import state
    from ray.cluster_utils import Cluster

    from fedresearch.hardware.ray import _Actor

    options = ["federation.num_supernodes=8", "federation.num_rounds=3", "federation.fraction_train=1"]
    options += ["strategy=scaffold", "federation.evaluate_every=3"]
    expected = run(*options).numbers()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        answered, actors, result = [], set(), _Actor.result

        def and_kill_the_node(self):
            answer = result(self)
            answered.append(1)
            actors.add(self)
            while len(answered) == 1 and sum(actor["State"] == "ALIVE" for actor in state.actors().values()) < 2:
                time.sleep(0.1)
            if len(answered) > 8 and len(actors) == 2 and doomed in cluster.worker_nodes:
                cluster.remove_node(doomed, allow_graceful=False)
            return answer

        monkeypatch.setattr(_Actor, "result", and_kill_the_node)
        # Nodes of a cluster have the machine's own address, at which conftest lets Python's sockets reach nothing.
        monkeypatch.setattr("fedresearch.hardware.ray._check_reachable", lambda address: None)
        with caplog.at_level(logging.WARNING, "fedresearch"):
            rows = run(*options, "hardware=ray", f"hardware.address={cluster.address}").numbers()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert rows == expected
    assert any("a worker died" in record.message for record in caplog.records)
    assert len(answered) == 3 * 8 + 8


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"], ids=["nobody there", "none running"])
def test_a_cluster_that_is_not_there_is_reported_in_a_line(compose, monkeypatch, address, tmp_path):
    # Another test's cluster would be found by its process or by the file in which Ray writes down the latest.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", cache(set))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    experiment = Experiment(*compose("hardware=ray", "tracker=none", f"hardware.address={address}"))
    with (
        pytest.raises(InputError, match=f"no Ray cluster answers at hardware.address={address}"),
        experiment.grid,
    ):
        pass
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hardware.num_cpus=5"], "no node of the Ray cluster has room for hardware.num_cpus=5 and"),
        (["hardware.num_gpus=0.5"], r"has room for hardware.num_cpus=1 and hardware.num_gpus=0.5; try"),
    ],
    ids=["cpus", "gpus"],
)
def test_what_no_node_has_room_for_is_reported_in_a_line(compose, monkeypatch, overrides, said):
    """Two nodes of four cores have no room for five; one that has gone had."""
    ended = []

    @contextmanager
    def own_cluster():
        try:
            yield
        finally:
            ended.append(True)

    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}]
    monkeypatch.setattr("fedresearch.hardware.ray.own_cluster", own_cluster)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    experiment = Experiment(*compose("hardware=ray", "tracker=none", *overrides))
    with pytest.raises(InputError, match=said), experiment.grid:
        pass
    assert ended


STRANGER = """
import ray, sys
ray.init(sys.argv[1], logging_level="ERROR")
print("ran as", ray.get(ray.remote(lambda: __import__("os").getuid()).remote()))
"""


def test_a_cluster_of_its_own_is_this_machines_and_this_runs_alone(tmp_path):
    """It listens on loopback only, and a process of this machine that has no token cannot have code run."""
    from fedresearch.hardware.ray import RayGrid

    app = ClientApp()
    app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
    with RayGrid(app, num_supernodes=2) as grid:
        replies = grid.send_and_receive([Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()])
        assert not any(reply.has_error() for reply in replies)
        listening = [each for pid in [os.getpid(), *descendants(os.getpid())] for each in listens(pid)]
        assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
        assert {address for _, address in listening} <= LOOPBACK
        folder = Path(ray._private.worker._global_node.get_session_dir_path()).parents[1]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
        assert len((folder / "token").read_text()) == 64
        # Without the variable, Ray would look for the cluster at the machine's own address, where there is none.
        environment = {**os.environ, "HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        guessed = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        command = [sys.executable, "-c", STRANGER, ray.get_runtime_context().gcs_address]
        with ExitStack() as stack:
            for name, stranger in {"without": environment, "guessed": guessed}.items():
                out = stack.enter_context((tmp_path / name).open("w"))
                process = subprocess.Popen(command, env=stranger, cwd=tmp_path, stdout=out, stderr=out)
                stack.callback(stack.enter_context(process).kill)  # it tries for minutes
            deadline = time.monotonic() + 120
            for printed in (tmp_path / "without", tmp_path / "guessed"):
                while "Authentication token is missing or incorrect" not in printed.read_text():
                    assert time.monotonic() < deadline, printed.read_text()
                    time.sleep(0.1)
            time.sleep(1)
        assert not any("ran as" in (tmp_path / name).read_text() for name in ("without", "guessed"))
    assert not folder.exists()
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_killed_run_leaves_no_process_and_no_folder(tmp_path):
    overrides = ["model=logistic", "tracker=none", "federation.num_rounds=100000", "federation.evaluate_initial=false"]
    overrides.append("hydra.run.dir=d")
    overrides.append(f"hardware.num_cpus={num_cores()}")  # one actor
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        process = warm.Command(
            *("-m", "fedresearch.main", "hardware=ray", *overrides),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_TMPDIR": short},
        )
        while not (tmp_path / "d" / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.1)
        started = descendants(process.pid)
        assert len(started) >= 5  # the cluster's server, its raylet with two agents, a client
        assert [*Path(short).iterdir()]
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while started & living().keys():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        deadline = time.monotonic() + 10
        while [*Path(short).iterdir()]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_its_sockets_have_short_paths(monkeypatch, tmp_path):
    from fedresearch.hardware import own_ray

    long = str(tmp_path / ("x" * 90))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", long)
    assert own_ray._parent() == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/ada/job")
    assert own_ray._parent() == "/scratch/ada/job"
    monkeypatch.setenv("RAY_TMPDIR", long)
    with pytest.raises(
        InputError, match=f"^RAY_TMPDIR={re.escape(long)} is too long for the paths of Ray's sockets; try "
    ):
        own_ray._parent()
