"""The callback that Hydra calls before a sweep's first job and after its last.

Hydra imports it for each run, so that it imports what only sweeps need as it is called.
"""

import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedresearch import config
from fedresearch.errors import InputError
from fedresearch.masking import masked_words

# A launcher's worker process imports this before it names its job's directory.
config.register()


class Sweep(Callback):
    """Checks all jobs before any starts, lists them, and ends the sweep with a table and an exit code."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse the sweep if any of its jobs is wrong; else write the list of its jobs."""
        exit_on_error(_start, config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the state of the jobs; exit with 1 if any failed."""
        from fedresearch.study.sweep.status import show

        if exit_on_error(show, Path(config.hydra.sweep.dir)):
            sys.exit(1)


def _start(sweep: DictConfig) -> None:
    from fedresearch.runs.directory import write_whole
    from fedresearch.study.sweep.compose import compose_jobs, knows_its_jobs, sweep_directory
    from fedresearch.study.sweep.job import is_done
    from fedresearch.study.sweep.status import JOBS, show
    from fedresearch.study.sweep.sweeper import replace_jobs

    directory = sweep_directory(sweep)
    if not knows_its_jobs(sweep):
        (directory / JOBS).unlink(missing_ok=True)
        _share_cores(sweep)
        return
    jobs = compose_jobs(sweep)
    replace_jobs(jobs, sweep)
    directory.mkdir(parents=True, exist_ok=True)
    entries = [{"overrides": masked_words(job.overrides), "directory": job.directory} for job in jobs]
    text = json.dumps(entries, indent=2) + "\n"
    write_whole(directory / JOBS, lambda path: path.write_text(text, encoding="utf-8"))
    if all(is_done(directory / job.directory, job.config) for job in jobs):
        show(directory)
        print("there is nothing left to do")
        sys.exit(0)
    _share_cores(sweep, len(jobs))


def _share_cores(sweep: DictConfig, num_jobs: float = math.inf) -> None:
    """Divide this machine's cores among the jobs that a launcher starts at once, and print the share.

    Raises
    ------
    InputError
        If the number of jobs at once is invalid.
    """
    n_jobs = sweep.hydra.launcher.get("n_jobs", 1)
    if n_jobs == 1:
        return
    if not isinstance(n_jobs, int) or n_jobs == 0:
        raise InputError(f"hydra.launcher.n_jobs must be a number of jobs, or -1 for one per core, got {n_jobs}")
    from joblib import effective_n_jobs

    from fedresearch.hardware.cores import share_cores

    at_once = int(min(num_jobs, effective_n_jobs(n_jobs)))
    if at_once > 1:
        share = share_cores(at_once)
        print(f"{at_once} jobs run at once, on {share} core{'s' if share > 1 else ''} each", flush=True)


def exit_on_error(call: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function, and exit if it raises: Hydra would only warn about a callback's exception, and continue."""
    try:
        return call(argument)
    except Exception as error:
        if not config.report_error(error):
            traceback.print_exc()
        sys.exit(1)
