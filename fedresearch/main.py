"""The command line: ``fedresearch OVERRIDES`` runs an experiment, ``fedresearch VERB ...`` does everything else.

``python -m fedresearch.main`` is the same command. Imports nothing heavy, so that it hears signals from its start.
"""

import atexit
import gc
import os
import sys
from contextlib import suppress

from fedresearch.experiment.stopping import exit_code, interruptible


def command() -> None:
    """Run the command line as a process of its own, which ends at once.

    Taking down torch object by object takes half a second or more.
    """
    code: int | None = None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))

    def end() -> None:
        with suppress(OSError):  # Python reports it
            if code is not None:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    atexit.register(end)  # the first to be registered is the last to be called
    try:
        main()
        code = 0
    except SystemExit as ended:  # Python prints its text
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise


def main() -> None:
    """Run the command line. Report a mistake in it in one line, without a traceback, with exit code 1."""
    try:
        with interruptible():
            _run(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(exit_code())


def _run(typed: list[str]) -> None:
    """Run a command line. Import what it needs only here: it takes most of the time of a mistake."""
    match typed:
        case ["--version"]:
            from importlib.metadata import version

            print(f"fedresearch {version('fedresearch')}")
        case ["report", *arguments]:
            from fedresearch.study.report import command

            command.main(arguments)
        case ["sweep", "preflight", *arguments] if not {"--help", "-h"} & set(arguments):
            # Runs the sweep's own command, which composes and checks its jobs, and stops before the first one.
            callback = "++hydra.callbacks.sweep._target_=fedresearch.study.sweep.preflight.Preflight"
            _run_overrides(["--multirun", *arguments, callback])
        case ["sweep", *arguments]:
            from fedresearch.study.sweep import command as sweep_command

            sweep_command.main(arguments)
        case ["tune", *arguments]:
            from fedresearch.study import tune

            tune.main(arguments)
        case ["compare", *arguments]:
            from fedresearch.study import compare

            compare.main(arguments)
        case ["reproduce", *arguments]:
            from fedresearch.study import reproduce

            reproduce.main(arguments)
        case ["app", *arguments]:
            from fedresearch.flower_app import command as app_command

            app_command.main(arguments)
        case arguments if {"--help", "-h"} & set(arguments):
            from fedresearch.config.help_text import help_text

            print(help_text(arguments), end="")
        case arguments:
            _run_overrides(arguments)


def _run_overrides(arguments: list[str]) -> None:
    """Import what runs overrides, without garbage collections, which find nothing; and run them."""
    gc.disable()
    from fedresearch import hydra_app

    gc.enable()
    hydra_app.main(arguments)


if __name__ == "__main__":
    command()
