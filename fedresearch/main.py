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
from fedresearch.usage import CONF, usage

config.register()

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
        # Only now: torch and Flower take seconds to import, and a mistyped key is told before that.
        from fedresearch.run import run_experiment

        run_experiment(parsed, choices, directory, list(hydra_config.overrides.task))
    except Exception as error:
        if not any(directory.iterdir()):
            directory.rmdir()
        if hydra_config.mode == RunMode.RUN:
            _tell(error)
        raise  # a sweep goes on with its other jobs, and then raises this


def main() -> None:
    """Run the command line. A mistake in it is told in one line each, without traceback, with exit code 1."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage(), end="")
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print itself
    try:
        run()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        _tell(error)
        raise


def _tell(error: Exception) -> None:
    """Exit with the error's lines, if it is one that the user can mend."""
    told = error if isinstance(error, InputError) else config.explain(error)
    if told is not None and not _WANT_TRACEBACK:
        for line in told.args:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
