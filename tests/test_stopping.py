"""Signals that stop a run: when they take effect, and what is printed."""

import contextlib
import os
import signal
import sys

import pytest

from fedresearch import main
from fedresearch.experiment import run
from fedresearch.experiment.stopping import interruptible, no_signal_lost, stop_after_the_round
from tests.directories import conduct

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
SAID = "stopping after this round; once more to stop at once\n"


@pytest.fixture(autouse=True)
def _restored():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    assert {number: signal.getsignal(number) for number in NUMBERS} == before


@pytest.fixture(params=NUMBERS, ids=lambda number: number.name)
def number(request):
    return request.param


def send(number):
    os.kill(os.getpid(), number)


def test_before_the_rounds_one_signal_is_enough(number):
    with pytest.raises(KeyboardInterrupt), interruptible():
        send(number)


@pytest.mark.parametrize("then", [None, ImportError("half of it")])
def test_a_signal_that_foreign_code_loses_takes_effect_at_the_end(number, then):
    def foreign():
        with contextlib.suppress(KeyboardInterrupt):
            send(number)
        if then:
            raise then

    with pytest.raises(KeyboardInterrupt), interruptible(), no_signal_lost():
        foreign()


def test_what_is_not_a_signal_is_raised_as_it_is():
    with pytest.raises(ImportError), interruptible(), no_signal_lost():
        raise ImportError


def test_an_interrupted_command_says_so_and_ends_with_the_code_of_its_signal(monkeypatch, capsys, number):
    monkeypatch.setattr(main, "_run", lambda typed: send(number))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted\n"


def test_in_the_rounds_the_first_signal_prints_a_line_and_the_second_interrupts(number, capfd):
    with interruptible(), stop_after_the_round() as stopping:
        assert not stopping()
        send(number)
        assert stopping()
        assert capfd.readouterr().err == SAID
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_an_ignored_signal_stays_ignored(number, monkeypatch):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible(), stop_after_the_round() as stopping:
            send(number)
            assert not stopping()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_that_a_launcher_handles_stays_its_own():
    """As submitit does, which queues the job again."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append("launcher"))
    try:
        with interruptible(), stop_after_the_round() as stopping:
            send(signal.SIGUSR2)
            assert not stopping()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == ["launcher"]


@pytest.mark.parametrize(("error", "said"), [(RuntimeError("reentrant call"), SAID), (OSError("no terminal"), "")])
def test_the_line_is_printed_in_the_middle_of_another_and_without_a_terminal(monkeypatch, capfd, error, said):
    class Broken:
        def write(self, text):
            raise error

    with stop_after_the_round() as stopping, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Broken())
        send(signal.SIGTERM)
        assert stopping()
    assert capfd.readouterr().err == said


def test_a_signal_during_building_ends_the_run_and_leaves_nothing(tmp_path, monkeypatch, number):
    monkeypatch.setattr(run, "prepare", lambda experiment: send(number))
    with pytest.raises(KeyboardInterrupt):
        conduct(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
