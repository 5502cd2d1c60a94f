"""The step before the run: any fault of a client there is reported in one line."""

import os
import signal

import pytest

from fedresearch.errors import InputError
from fedresearch.experiment import rehearsal
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.hardware.ordered import OrderedGrid

WHERE = rf" in {__file__}, line \d+; FEDRESEARCH_FULL_ERROR=1 shows the traceback"


@pytest.fixture
def build(compose, monkeypatch):
    """Return a function that builds an experiment whose client does something in its first step."""

    def build_(does, *overrides):
        monkeypatch.setattr(OrderedGrid, "try_out", lambda *_: does())
        experiment = Experiment(*compose("model=logistic", "tracker=none", *overrides))
        prepare(experiment)

    return build_


def kill(number):
    return lambda: os.kill(os.getpid(), number)


def fail():
    raise ValueError("the client's reason")


def end():
    raise SystemExit(3)


@pytest.mark.parametrize("hardware", ["cpu", "workers"])
@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda: os._exit(0), "the client's process ended with exit code 0"),
        (lambda: os._exit(3), "the client's process ended with exit code 3"),
        (kill(signal.SIGKILL), "the client's process ended by signal 9, Killed"),
        (kill(signal.SIGTERM), "the client's process ended by signal 15, Terminated"),
        (
            end,
            rf"it ends the run, by SystemExit\(3\){WHERE}",
        ),
        (fail, rf"the client's reason{WHERE}"),
    ],
    ids=["exits", "fails", "killed", "ended", "ends", "raises"],
)
def test_a_client_that_ends_its_process_is_one_line(build, hardware, does, said):
    where = "model=logistic cannot train on dataset=digits with strategy=fedavg"
    with pytest.raises(InputError, match=rf"^{where}: {said}$"):
        build(does, f"hardware={hardware}")


def test_an_error_only_in_the_fork_is_not_a_failure(build):
    main = os.getpid()
    build(lambda: os.getpid() == main or fail())


def test_a_fork_that_does_not_reply_is_killed(build, monkeypatch, caplog):
    main = os.getpid()
    monkeypatch.setattr(rehearsal, "_FORK_TIMEOUT_S", 0.5)
    build(lambda: os.getpid() == main or signal.pause())
    assert [record.message for record in caplog.records if record.name == "fedresearch"] == [
        "the first step of a client takes more than 0.5 s; trying again in the main process"
    ]


def test_ctrl_c_ends_the_fork_too(build, tmp_path):
    main, seen = os.getpid(), tmp_path / "pid"

    def hang():
        seen.write_text(str(os.getpid()))
        os.kill(main, signal.SIGINT)
        signal.pause()

    with pytest.raises(KeyboardInterrupt):
        build(hang)
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen.read_text()), 0)
