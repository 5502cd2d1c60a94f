"""Errors that a user reads as lines instead of a traceback, and output that any terminal can print."""

import logging
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import dropwhile
from pathlib import Path
from traceback import format_tb

# 1: tracebacks instead of lines. Not Hydra's own variable, which the command sets and worker processes inherit.
FULL_ERROR = "FEDRESEARCH_FULL_ERROR"
# The files of Python, of installed packages and of this one.
_NOT_OWN = ("<", str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)  # of a traceback


@contextmanager
def printing() -> Iterator[None]:
    """Let a command print on any terminal, and into a pipe that its reader closes, as ``| head`` does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit


def named(error: BaseException) -> str:
    """Return an error's type and text."""
    return f"{type(error).__name__}: {error}"


def one_line(error: BaseException | str) -> str:
    """Return an error's text, or any text, on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return repr(error) if isinstance(error, KeyError) else " ".join(str(error).split()) or repr(error)


def raised_at(error: BaseException) -> str:
    """Return where in the user's own code an error was raised, for the end of a line; "" if it was elsewhere."""
    place = own_place(error)
    return place and f"{place}; {FULL_ERROR}=1 shows the traceback"


def reason(error: BaseException) -> str:
    """Return an error's text on one line; of the system's without the path, which the line names already."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def own_place(error: BaseException) -> str:
    """Return the file and line of the user's own code that raised an error, for the end of a line; "" if none."""
    return _place_in("".join(format_tb(error.__traceback__)))


def raised_line(text: str) -> str:
    """Return the last line of a text; of a traceback, its error on one line, and its place in the user's own code.

    An error's text may have several lines, as torch's have: they follow the last frame, whose lines are indented.
    """
    lines = text.splitlines() or [""]
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if not frames:
        return lines[-1]
    error = dropwhile(lambda line: line.startswith(" "), lines[frames[-1] :])
    return one_line(" ".join(error))[:500] + _place_in(text)


def _place_in(traceback: str) -> str:
    """Return the last place in the user's own code in a traceback, for the end of a line; "" without one."""
    own = [(file, line) for file, line in _FRAME.findall(traceback) if not file.startswith(_NOT_OWN)]
    return f" in {own[-1][0]}, line {own[-1][1]}" if own else ""


def readable(error: Exception) -> Exception:
    """Return the system's error about a path as an ``InputError``; return any other error unchanged."""
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"{error.filename} cannot be read: {error.strerror}")
    return error


def printable(text: str) -> str:
    """Return a text with control characters escaped, so that it is safe to print on a terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)


class MarkedFormatter(logging.Formatter):
    """Marks a log's warnings and errors by their level, as the command marks its own lines; not what only informs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return mark + super().format(record)


class InputError(Exception):
    """A mistake that the user can fix; each argument is one line for the terminal.

    A line has three parts: what was got, what is allowed, and what to type instead.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)
