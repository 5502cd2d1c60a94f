"""What Hydra calls before a sweep's first job and after its last."""

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
from fedresearch.runs.directory import write_whole
from fedresearch.runs.loaded import load
from fedresearch.runs.record import FINAL
from fedresearch.study.sweep.compose import compose_jobs
from fedresearch.study.sweep.status import JOBS, show
from fedresearch.study.sweep.sweeper import run_these

# A launcher's worker process imports this before it names its job's directory.
config.register()


class Sweep(Callback):
    """Checks every job before any starts, lists them, and ends the sweep with a table and an exit code.

    Parameters
    ----------
    preflight : bool
        Whether to estimate the sweep and start nothing.
    """

    def __init__(self, preflight: bool = False) -> None:
        self.preflight = preflight

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse the sweep if any of its jobs is mistaken; else write the list of its jobs."""
        _exiting(self._start, config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what has become of the jobs; exit with 1 if any failed."""
        if _exiting(show, Path(config.hydra.sweep.dir)):
            sys.exit(1)

    def _start(self, sweep: DictConfig) -> None:
        if not sweep.hydra.sweep.dir:
            raise InputError("hydra.sweep.dir is empty; leave it out for one that the same command finds again")
        directory = Path(sweep.hydra.sweep.dir)
        if sweep.hydra.runtime.choices["hydra/sweeper"] != "basic":  # it chooses its jobs as it goes
            if self.preflight:
                raise InputError("only the jobs of hydra/sweeper=basic are known before they start")
            (directory / JOBS).unlink(missing_ok=True)
            _share_cores(sweep)
            return
        jobs = compose_jobs(sweep)
        run_these(jobs, sweep)
        if self.preflight:
            from fedresearch.study.sweep.preflight import estimate

            sys.exit(1 if estimate(jobs, directory) else 0)
        directory.mkdir(parents=True, exist_ok=True)
        listed = [{"overrides": masked_words(job.overrides), "directory": job.directory} for job in jobs]
        text = json.dumps(listed, indent=2) + "\n"
        write_whole(directory / JOBS, lambda path: path.write_text(text, encoding="utf-8"))
        if all(load(directory / job.directory)[0].state in FINAL for job in jobs):
            show(directory)
            print("there is nothing left to do")
            sys.exit(0)
        _share_cores(sweep, len(jobs))


def _share_cores(sweep: DictConfig, num_jobs: float = math.inf) -> None:
    """Give each of the jobs that a launcher starts at once on this machine its share of the cores, and say so.

    Raises
    ------
    InputError
        If none may run.
    """
    n_jobs = sweep.hydra.launcher.get("n_jobs", 1)
    if n_jobs == 1:
        return
    if not isinstance(n_jobs, int) or n_jobs == 0:
        raise InputError(f"hydra.launcher.n_jobs must be a number of jobs, or -1 for one a core, got {n_jobs}")
    from joblib import effective_n_jobs

    from fedresearch.hardware.cores import share_cores

    at_once = int(min(num_jobs, effective_n_jobs(n_jobs)))
    if at_once > 1:
        share = share_cores(at_once)
        print(f"{at_once} jobs run at once, on {share} core{'s' if share > 1 else ''} each", flush=True)


def _exiting(call: Callable[[Any], Any], argument: Any) -> Any:
    """Call, and exit where it raises: Hydra would warn of a callback's exception and go on."""
    try:
        return call(argument)
    except Exception as error:
        if not config.report_error(error):
            traceback.print_exc()
        sys.exit(1)
