"""The command ``python -m fedresearch.sweep``: what has become of a sweep, and what one would take."""

import runpy
import sys
from pathlib import Path

from fedresearch.config import tell
from fedresearch.errors import InputError, printing
from fedresearch.sweep.status import show

USAGE = """\
python -m fedresearch.sweep status DIR
    what has become of the jobs in a sweep's directory; exit code 1 if any failed
python -m fedresearch.sweep preflight ARGUMENTS
    what `python -m fedresearch.main -m ARGUMENTS` would run, and an estimate of time, memory and bytes communicated
"""


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["status", directory]:
            failed = True
            with printing():
                try:
                    failed = show(Path(directory))
                except InputError as error:
                    if not tell(error):
                        raise
            sys.exit(1 if failed else 0)
        case ["preflight", *arguments]:
            # The command itself, which composes and checks the jobs, up to where the first would start.
            sys.argv[1:] = ["--multirun", *arguments, "++hydra.callbacks.sweep.preflight=true"]
            runpy.run_module("fedresearch.main", run_name="__main__", alter_sys=True)
        case ["--help" | "-h"]:
            print(USAGE, end="")
        case _:
            sys.exit(USAGE.rstrip())


if __name__ == "__main__":
    main()
