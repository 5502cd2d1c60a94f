"""The step before the run: any fault of a client there is reported in one line."""

import os
import random
import signal

import pytest
import torch
from torch.nn import Linear

from fedresearch.errors import InputError
from fedresearch.experiment import rehearsal
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.local.update import End, LocalUpdate

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


class Counting(LocalUpdate):
    calls = 0

    def correct(self, gradients, params, fixed):
        self.calls += 1
        return {name: gradient / self.calls for name, gradient in gradients.items()}


class Shrinking(LocalUpdate):
    def begin(self, start):
        for param in start.anchor.values():
            param.mul_(0.9)
        return {}


class Drawing(LocalUpdate):
    generator = random.Random(0)

    def end(self, params, fixed, drift):
        return End(metrics={"drawn": self.generator.random()})


class Centred(Linear):
    def forward(self, x):
        x -= 0.5
        return super().forward(x.flatten(1))


class Remembering(Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0)
        return super().forward(x.flatten(1) - self.mean)


@pytest.mark.parametrize(
    ("part", "value", "differs"),
    [
        ("update", Counting(), "arrays/linear.weight"),
        ("update", Shrinking(), "arrays/linear.weight"),
        ("update", Drawing(), "metrics/drawn"),
        ("model", Centred(64, 10), "arrays/weight"),
        ("model", Remembering(64, 10), "arrays/weight"),
    ],
)
def test_clients_that_answer_a_message_in_two_ways_are_refused(compose, part, value, differs):
    """Elsewhere, other clients would have come before this one: with workers, or after a resume."""
    experiment = Experiment(*compose("model=logistic", "tracker=none"))
    vars(experiment)[part] = value
    with pytest.raises(
        InputError, match=rf"a client's second answer to one message differs from the first \({differs}\)"
    ):
        prepare(experiment)


def worn(outputs, targets):
    targets.add_(1)
    return (targets % 2).double().mean()


def test_a_metric_that_changes_its_targets_is_refused(compose):
    experiment = Experiment(*compose("model=logistic", "tracker=none"))
    vars(experiment)["metrics"] = {"worn": worn}
    with pytest.raises(InputError, match=r"^metrics=worn: the same samples have {.*} and then {.*}: the metric, or"):
        _ = experiment.measured
