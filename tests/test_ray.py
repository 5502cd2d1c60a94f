"""Clients on a Ray cluster: a real one of this machine, and one of two nodes of which one is killed."""

import logging

import pytest

from fedresearch.errors import InputError
from fedresearch.experiment import Experiment

# Ray leaves files of its own to the garbage collector, and a killed node's sockets.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
ray = pytest.importorskip("ray")

TWENTY = ["federation.num_supernodes=20", "federation.num_rounds=5"]


@pytest.fixture(autouse=True)
def _ended():
    yield
    ray.shutdown()


def test_an_actor_pool_gives_the_same_bits(run):
    options = [*TWENTY, "strategy=scaffold"]  # it keeps something on the clients
    assert run(*options, "hardware=ray").numbers() == run(*options).numbers()
    assert not ray.is_initialized()


def test_a_round_completes_with_the_same_bits_when_a_node_is_killed_in_its_midst(run, monkeypatch, caplog):
    """Two nodes of one core each. The second goes when the first of round 2's clients has answered."""
    from ray.cluster_utils import Cluster

    from fedresearch.hardware.ray import _Actor

    options = ["federation.num_supernodes=8", "federation.num_rounds=3", "federation.fraction_train=1"]
    options += ["strategy=scaffold", "federation.evaluate_every=3"]
    expected = run(*options).numbers()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        answered, result = [], _Actor.result

        def and_kill_the_node(self):
            answer = result(self)
            answered.append(1)
            if len(answered) == 8 + 1:
                cluster.remove_node(doomed, allow_graceful=False)
            return answer

        monkeypatch.setattr(_Actor, "result", and_kill_the_node)
        # Nodes of a cluster have the machine's own address, at which conftest lets Python's sockets reach nothing.
        monkeypatch.setattr("fedresearch.hardware.ray._knock", lambda address: None)
        with caplog.at_level(logging.WARNING, "fedresearch"):
            rows = run(*options, "hardware=ray", f"hardware.address={cluster.address}").numbers()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert rows == expected
    assert any("a worker died" in record.message for record in caplog.records)
    assert len(answered) == 3 * 8 + 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hardware.num_cpus=1000"], "no node of the Ray cluster has room for hardware.num_cpus=1000"),
        (["hardware.num_gpus=0.5"], r"has room for hardware.num_cpus=1 and hardware.num_gpus=0.5; try"),
        (["hardware.address=127.0.0.1:1"], "there is no Ray cluster at hardware.address=127.0.0.1:1"),
        (["hardware.address=auto"], "there is no Ray cluster at hardware.address=auto"),
    ],
    ids=["cpus", "gpus", "nobody there", "none running"],
)
def test_what_the_cluster_cannot_give_is_told_in_a_line(compose, overrides, said):
    experiment = Experiment(*compose("hardware=ray", "tracker=none", *overrides))
    with pytest.raises(InputError, match=said), experiment.grid:
        pass
    assert not ray.is_initialized()
