"""The contract with Flower's private parts (``fedresearch.federation.flower``), and its log lines."""

import importlib
import logging
import pkgutil
import random
import re
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy
from flwr.serverapp.strategy import strategy_utils

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.generators import seeded_generators
from fedresearch.hardware.in_process import InProcessGrid

PACKAGE = Path(flower.__file__).parents[1]


def message():
    return Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, "train")


def test_messages_can_be_made_and_numbered():
    flower.be_server(run_id=5)
    made = message()
    assert made.metadata.run_id == 5
    flower.set_message_id(made, "m1")
    assert made.metadata.message_id == "m1"


def test_error_replies_are_flowers():
    from flwr.common.constant import ErrorCode

    flower.be_server(run_id=5)
    made = message()
    flower.set_message_id(made, "m2")
    reply = flower.client_error("why", reply_to=made)
    assert reply.has_error()
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "why"
    assert reply.metadata.reply_to_message_id == "m2"
    assert reply.metadata.src_node_id == 7


def test_every_module_of_flower_samples_by_the_grid():
    """No strategy holds the function that waits and permutes."""
    names = [module.name for module in pkgutil.iter_modules(strategy.__path__, f"{strategy.__name__}.")]
    held = {name: vars(importlib.import_module(name)).get("sample_nodes") for name in names}
    assert {function for function in held.values() if function} == {flower._sample_nodes}
    assert {"strategy_utils", "fedavg"} <= {name.rpartition(".")[2] for name, function in held.items() if function}


def test_a_grid_without_a_cohort_is_sampled_as_flower_does():
    """Three of nine nodes are sampled with Python's global generator, as without this package."""
    grid = InProcessGrid(ClientApp(), 9)
    with seeded_generators(5):
        drawn, connected = strategy_utils.sample_nodes(grid, 9, 3)
    assert connected == [*range(2, 11)]
    assert drawn == random.Random(5).sample(connected, 3)


@pytest.mark.parametrize(("record", "wrong"), [(MetricRecord(), "a"), (ConfigRecord(), {}), (RecordDict(), 1)])
def test_records_check_what_they_store(record, wrong):
    for key, value in ((1, 1.0), ("a", wrong)):
        with pytest.raises(TypeError):
            record[key] = value
    assert not record


def test_an_untested_release_is_rejected(monkeypatch):
    monkeypatch.setattr(flower, "version", lambda _: "1.99.0")
    with pytest.raises(InputError, match=r"^flwr 1\.99\.0 is installed, fedresearch works with 1\.41\.\*"):
        flower.check_version()


def test_the_bounds_in_pyproject_are_the_tested_releases():
    bounds = re.search(r'"flwr\[simulation\]>=1\.(\d+),<1\.(\d+)"', (PACKAGE.parent / "pyproject.toml").read_text())
    assert [f"1.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))] == list(flower.TESTED)


def test_no_other_module_touches_private_flower():
    private = re.compile(r"flwr\.(supercore|superlink|supernode|common|server\b|client\b|compat|proto|simulation)")
    touching = {p.name for p in PACKAGE.rglob("*.py") if re.search(rf"(import|from) {private.pattern}", p.read_text())}
    assert touching == {"flower.py"}


def test_flowers_lines_appear_once_and_quietly(capfd):
    flower.quieten()
    logger = logging.getLogger("flwr")
    assert not logger.propagate  # or the root logger's handler would print each line again
    logger.info("chatter")
    logger.warning("once")
    printed = capfd.readouterr().err
    assert "chatter" not in printed
    assert printed.count("once") <= 1
