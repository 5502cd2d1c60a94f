"""The command: ``python -m fedresearch.main [overrides]`` composes an experiment, checks it, builds it and runs it."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fedresearch import config
from fedresearch.errors import InputError
from fedresearch.submission import Submission
from fedresearch.usage import CONF, usage

config.register()

_TOLD, _OF_A_RUN = "told to the user", "raised by the run"
_WANT_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> None:
    """Run one composed experiment in Hydra's run directory."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    try:
        parsed = config.parse(composed)
        choices = {group: option for group, option in hydra_config.runtime.choices.items() if "/" not in group}
        config.check(parsed, choices)
        overrides = list(hydra_config.overrides.task)
        # Only now: torch and Flower take seconds to import, and a mistyped key is told before that.
        if config.runs_elsewhere(parsed):
            from fedresearch.submit import submit

            submit(Submission(parsed, choices, directory, overrides, sys.orig_argv))
        else:
            from fedresearch.run import run_experiment

            run_experiment(parsed, choices, directory, overrides)
    except Exception as error:
        if not any(directory.iterdir()):
            directory.rmdir()
        told = _tell(error)
        if told and hydra_config.mode == RunMode.RUN:
            sys.exit(1)
        error.add_note(_TOLD if told else _OF_A_RUN)
        raise  # a sweep goes on with its other jobs, and then raises this


def main() -> None:
    """Run the command line. A mistake in it is told in one line each, without traceback, with exit code 1."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(usage(arguments), end="")
        return
    # Hydra's parser wants its flags before the overrides.
    sys.argv[1:] = sorted(arguments, key=lambda word: not word.startswith("-") and ("=" in word or word[0] == "~"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print itself
    try:
        run()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        notes = getattr(error, "__notes__", ())
        if _TOLD in notes:
            sys.exit(1)
        # What is not of a run is of Hydra, which could not make sense of the command line.
        unread = InputError(f"cannot compose this command line: {type(error).__name__}: {error}")
        if _OF_A_RUN not in notes and (_tell(error) or _tell(unread)):
            sys.exit(1)
        raise


def _tell(error: Exception) -> bool:
    """Print the error's lines, if it is one that the user can mend; return whether it is."""
    told = error if isinstance(error, InputError) else config.explain(error)
    if told is None or _WANT_TRACEBACK:
        return False
    for line in told.args:
        print(f"error: {line}", file=sys.stderr)
    return True


if __name__ == "__main__":
    main()
