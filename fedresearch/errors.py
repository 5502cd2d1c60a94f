"""What a command says: the one exception that a user is meant to see as words, and lines on any terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper


@contextmanager
def printing() -> Iterator[None]:
    """Let a command print on any terminal, and whoever reads it leave, as ``| head`` does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more as it ends


def named(error: BaseException) -> str:
    """Return an error's kind and text."""
    return f"{type(error).__name__}: {error}"


def one_line(error: BaseException | str) -> str:
    """Return an error's text, or any other, on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return repr(error) if isinstance(error, KeyError) else " ".join(str(error).split()) or repr(error)


def readable(error: Exception) -> Exception:
    """Return the system's refusal of a path as the one line that a user reads; any other error as it is."""
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"{error.filename} cannot be read: {error.strerror}")
    return error


def printable(text: str) -> str:
    """Return a text as a terminal may show it: what would steer the terminal is written out."""
    return "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)


class InputError(Exception):
    """What the user asked for cannot be done; each argument is one line for the terminal.

    A line says what was got, what is allowed, and what to type instead.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)
