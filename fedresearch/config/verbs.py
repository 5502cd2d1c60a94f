"""What the verbs of the command line share: their names, a parser of arguments, and errors in one line."""

import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

from fedresearch.config.explain import report_error
from fedresearch.errors import InputError, readable

VERBS = ("report", "sweep", "tune", "compare", "reproduce", "app")
_NEAR = 0.7  # difflib's ratio, so that --lr is not near --help


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
        unknown = re.match("unrecognized arguments: .*?(--[^ =]+)", message)
        near = get_close_matches(unknown[1], self._option_string_actions, 1, _NEAR) if unknown else []
        raise InputError(f"{message}; {f'did you mean {near[0]}?' if near else f'try {self.prog} --help'}")


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
    except BrokenPipeError:
        raise
    except explained as error:
        if not report_error(readable(error)):
            raise
        sys.exit(1)
