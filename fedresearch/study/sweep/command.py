"""The command ``fedresearch sweep status DIR``: the states of a sweep's jobs. ``main`` runs ``sweep preflight``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fedresearch.config import report_error
from fedresearch.errors import InputError, printing
from fedresearch.study.sweep.status import show

USAGE = """\
fedresearch sweep status DIR
    the state of each job in a sweep's directory; exit code 1 if any failed
fedresearch sweep preflight ARGUMENTS
    the jobs of `fedresearch -m ARGUMENTS`, and an estimate of their time, memory and communication
"""


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    match words:
        case _ if {"--help", "-h"} & set(words):
            print(USAGE, end="")
        case ["status", directory]:
            failed = True
            with printing():
                try:
                    failed = show(Path(directory))
                except InputError as error:
                    if not report_error(error):
                        raise
            sys.exit(1 if failed else 0)
        case _:
            sys.exit(USAGE.rstrip())
