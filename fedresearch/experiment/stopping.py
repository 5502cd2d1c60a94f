"""Ctrl-C and the signals of schedulers and terminals: the first ends the run after its round, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Ctrl-C; the end of a scheduler's job; a closed terminal.
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Slurm's --signal sends them. Used only if free: submitit requeues jobs by them.
_STOP_IF_FREE = (signal.SIGUSR1, signal.SIGUSR2)
_received: list[int] = []  # by this process


@contextmanager
def interruptible() -> Iterator[None]:
    """Let each signal raise ``KeyboardInterrupt``, as Ctrl-C does."""
    with _handled_by(_interrupt):
        yield


@contextmanager
def no_signal_lost() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` at the end if a signal raised one in the block that is lost.

    torch continues without NumPy if importing that raises anything.
    """
    before = len(_received)
    try:
        yield
    except Exception as error:
        if len(_received) > before:
            raise KeyboardInterrupt from error
        raise
    if len(_received) > before:
        raise KeyboardInterrupt


def exit_code() -> int:
    """Return the exit code of an interrupted process, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_received or [signal.SIGINT])[-1]


@contextmanager
def stop_after_the_round() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the run must end after its round.

    Nothing changes in a thread, which receives no signals. Ignored signals stay ignored: Ctrl-C in a background job,
    SIGHUP under ``nohup``.

    Raises
    ------
    KeyboardInterrupt
        At the second signal.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            _interrupt(number, frame)
        asked.append(number)
        _received.append(number)
        _say("stopping after this round; once more to stop at once")

    with _handled_by(ask):
        yield lambda: bool(asked)


def _interrupt(number: int, frame: Any) -> None:
    _received.append(number)
    raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    heard = []
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _STOP if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        heard += [number for number in _STOP_IF_FREE if signal.getsignal(number) in (signal.SIG_DFL, _interrupt)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def _say(line: str) -> None:
    """Print a line at once, even if the signal interrupted another print or the terminal is closed."""
    with suppress(OSError):
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # in the middle of another line
            os.write(2, f"{line}\n".encode())
