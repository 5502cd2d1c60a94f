"""Ctrl-C, and the signals that schedulers and terminals send: once, the run ends after its round; twice, at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Ctrl-C; a scheduler's end; a terminal that closes.
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# As Slurm's --signal sends them, where nobody else listens: submitit does, to queue a job again.
_ASKING_IF_FREE = (signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let each of the signals do what Ctrl-C does: raise ``KeyboardInterrupt``."""
    with _heard_by(_interrupt):
        yield


@contextmanager
def stop_after_the_round() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the run must end after its round.

    In a thread, which the system does not interrupt, nothing changes; nor does a signal that is ignored, as Ctrl-C is
    in a background job and SIGHUP under ``nohup``.

    Raises
    ------
    KeyboardInterrupt
        When the user, or who stops this process, has no patience.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            _interrupt(number, frame)
        asked.append(number)
        _say("stopping after this round; once more to stop at once")

    with _heard_by(ask):
        yield lambda: bool(asked)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _heard_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    heard = []
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _ASKING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        heard += [number for number in _ASKING_IF_FREE if signal.getsignal(number) in (signal.SIG_DFL, _interrupt)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def _say(line: str) -> None:
    """Print a line at once, whatever the signal has interrupted and although the terminal may be closed."""
    with suppress(OSError):
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # in the midst of another line
            os.write(2, f"{line}\n".encode())
