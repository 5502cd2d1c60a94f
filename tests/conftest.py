"""What several tests share: composing an experiment as the command line does, and running it."""

import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]  # the developer's own would name the tests' runs
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job, and by all that it starts
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup

LONG = "FEDRESEARCH_LONG" in os.environ  # ./scripts/test --long
ROOT = Path(__file__).parents[1]
# For tests with Ray in their process: it leaves files of its own to the garbage collector.
RAY = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.ray,
]
MNIST = ROOT.parent / "shared" / "data" / "mnist"


@dataclass
class Result:
    """A run in memory: its rows, its last global arrays and the experiment's parts."""

    rows: list[dict[str, Any]]
    arrays: dict[str, Any]
    experiment: Any

    def numbers(self) -> list[dict[str, Any]]:
        """Return the rows without their times."""
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in self.rows]


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the SuperLink's tests, which wait, and all that are slow; mark those that train."""
    items.sort(key=lambda item: (item.path.stem != "test_superlink", not item.get_closest_marker("slow")))
    for item in items:
        if {"run", "whole", "finished"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through all that has been imported, nor the forks that runs try a step in."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave the machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect Ray's garbage after its test, and not in the next one, whose warnings are errors."""
    yield
    if request.node.get_closest_marker("ray"):
        gc.collect()


@pytest.fixture
def compose() -> Callable[..., tuple[Any, dict[str, str | None]]]:
    """Return a function from overrides to the checked config and the chosen options."""
    from tests import directories

    return directories.compose


@pytest.fixture
def run(compose: Callable[..., Any]) -> Callable[..., Result]:
    """Return a function that runs an experiment in memory, through its real apps and grid."""

    def run_(*overrides: str, config_dir: Path | None = None) -> Result:
        from flwr.app import ArrayRecord, Context, RecordDict

        from fedresearch.experiment.experiment import Experiment
        from fedresearch.experiment.preparation import prepare
        from fedresearch.federation.server_app import make_server_app

        overrides = ("federation.evaluate_initial=false", *overrides)  # these tests are about rounds
        experiment = Experiment(*compose(*overrides, "tracker=none", config_dir=config_dir))
        prepare(experiment)
        rows: list[dict[str, Any]] = []
        last: list[ArrayRecord] = []
        loop = experiment.round_loop(lambda row, arrays: rows.append(row), lambda *_: None)
        app = make_server_app(loop, experiment.initial_arrays, last.append)
        with experiment.grid as grid:
            app(grid, Context(1, 0, {}, RecordDict(), {}))
        return Result(rows, {name: array.numpy() for name, array in last[0].items()}, experiment)

    return run_


@pytest.fixture(scope="session")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a C++ compiler that optimises nothing, which takes a third of the time, for tests that compile anew."""
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that nothing disturbed; to be copied, not written to."""
    from tests.directories import SCAFFOLD, conduct

    directory: Path = conduct(tmp_path_factory.mktemp("whole") / "run", *SCAFFOLD)
    return directory
