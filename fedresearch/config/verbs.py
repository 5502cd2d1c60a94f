"""What the verbs of the command line share: their names, a parser of arguments, and errors in one line."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fedresearch.config.explain import report_error
from fedresearch.errors import InputError, readable

VERBS = ("report", "sweep", "tune", "compare", "reproduce", "app")


class VerbParser(ArgumentParser):
    """Parses the arguments of a verb, and raises ``InputError`` for a mistake."""

    def __init__(self, verb: str, description: str, epilog: str, *, allow_abbrev: bool = True) -> None:
        super().__init__(
            f"fedresearch {verb}",
            description=description,
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=allow_abbrev,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a mistake as one line, without argparse's lines of usage."""
        raise InputError(f"{message}; try {self.prog} --help")


@contextmanager
def reporting(explained: type[Exception] = Exception) -> Iterator[None]:
    """Report a mistake in one line, without a traceback, with exit code 1.

    Parameters
    ----------
    explained : type
        Of the exceptions that may become a line; others keep their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:
        raise
    except explained as error:
        if not report_error(readable(error)):
            raise
        sys.exit(1)
