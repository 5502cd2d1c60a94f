"""The command ``fedresearch sweep status DIR``: the states of a sweep's jobs. ``main`` runs ``sweep preflight``."""

import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from fedresearch.config.verbs import reporting
from fedresearch.errors import InputError, printing
from fedresearch.study.sweep.status import show

USAGE = """\
fedresearch sweep status DIR
    the state of each job in a sweep's directory; exit code 1 if any failed
fedresearch sweep preflight ARGUMENTS
    the jobs of `fedresearch -m ARGUMENTS`, and an estimate of their time, memory and communication
"""

_TO_TYPE = {"status": "status SWEEP_DIR", "preflight": "preflight seed=0,1"}


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    failed = False
    with printing(), reporting():
        match words:
            case _ if {"--help", "-h"} & set(words):
                print(USAGE, end="")
            case ["status", directory]:
                failed = show(Path(directory))
            case _:
                meant, *_ = *get_close_matches("".join(words[:1]), _TO_TYPE, 1), "status"
                raise InputError(
                    "sweep must be followed by status and a directory, or by preflight and a sweep's arguments, "
                    f"got {shlex.join(words) or 'nothing'}; try fedresearch sweep {_TO_TYPE[meant]}"
                )
    sys.exit(failed)
