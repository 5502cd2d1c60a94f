"""Ctrl-C and SIGTERM: once, the run ends after its round; twice, at once."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_after_the_round() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the run is to end after its round.

    In a thread, which the system does not interrupt, nothing changes; nor does a signal that is ignored, as Ctrl-C is
    in a background job.

    Raises
    ------
    KeyboardInterrupt
        When the user, or who stops this process, has no patience.
    """
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)
        print("stopping after this round; once more to stop at once", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
