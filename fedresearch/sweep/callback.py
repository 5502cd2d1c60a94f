"""What Hydra calls before a sweep's first job and after its last."""

import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from fedresearch import config
from fedresearch.config.resolvers import without_hydra
from fedresearch.errors import InputError
from fedresearch.runs.directory import write_whole
from fedresearch.runs.loaded import load
from fedresearch.runs.record import FINAL
from fedresearch.sweep.job import refuse_other
from fedresearch.sweep.status import JOBS, show, swept

# A launcher's worker process imports this before it names its job's directory.
config.register()


@dataclass(frozen=True)
class Job:
    """One job as it is before it starts: what was typed for it, its directory in the sweep's, its checked config."""

    overrides: list[str]
    directory: str
    config: config.Config
    choices: dict[str, str | None]


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
        if self.preflight:
            from fedresearch.sweep.preflight import estimate

            sys.exit(1 if estimate(jobs, directory) else 0)
        directory.mkdir(parents=True, exist_ok=True)
        listed = [{"overrides": job.overrides, "directory": job.directory} for job in jobs]
        text = json.dumps(listed, indent=2) + "\n"
        write_whole(directory / JOBS, lambda path: path.write_text(text, encoding="utf-8"))
        if all(load(directory / job.directory)[0].state in FINAL for job in jobs):
            show(directory)
            print("there is nothing left to do")
            sys.exit(0)
        _share_cores(sweep, len(jobs))


def compose_jobs(sweep: DictConfig) -> list[Job]:
    """Return the jobs of a sweep of Hydra's basic sweeper, checked; of several with one directory the first.

    Raises
    ------
    InputError
        With one line for each mistake, naming the first job that has it.
    """
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.params or {}).items()]
    words += config.as_typed(sweep.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    jobs: dict[str, Job] = {}
    mistakes: dict[str, list[str]] = {}
    for number, (job, shown) in enumerate(zip(batch, swept(batch), strict=True)):
        try:
            composed = _compose(loader.load_sweep_config(sweep, job), job, number, Path(sweep.hydra.sweep.dir))
            jobs.setdefault(composed.directory, composed)
        except Exception as error:
            told = error if isinstance(error, InputError) else config.explain(error)
            if told is None:
                raise
            for line in told.args:
                mistakes.setdefault(line, []).append(" ".join(shown))
    if mistakes:
        others = {line: f" and {len(of) - 1} more" if len(of) > 1 else "" for line, of in mistakes.items()}
        raise InputError(*(f"job {of[0]}{others[line]}: {line}" for line, of in mistakes.items()))
    if len(jobs) < len(batch):
        print(f"{len(batch)} jobs, of which {len(jobs)} differ in what changes a number: each of these runs once")
    return list(jobs.values())


def _compose(composed: DictConfig, overrides: Sequence[str], number: int, sweep_dir: Path) -> Job:
    with open_dict(composed.hydra):
        composed.hydra.job.num = number
        composed.hydra.job.id = str(number)
    HydraConfig.instance().set_config(composed)  # for the config's ${hydra:...}, as it is set when the job runs
    parsed, choices = config.checked(without_hydra(composed), composed.hydra.runtime.choices)
    directory = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
    refuse_other(sweep_dir / directory, config.digest(parsed))
    return Job(list(overrides), directory, parsed, choices)


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
        if not config.tell(error):
            traceback.print_exc()
        sys.exit(1)
