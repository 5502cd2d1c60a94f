"""The jobs of a sweep with Hydra's basic sweeper, composed and checked before any starts."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, prod
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from fedresearch import config
from fedresearch.config.compose_once import keep, keep_none
from fedresearch.config.resolvers import without_hydra
from fedresearch.errors import InputError
from fedresearch.study.sweep.job import changes_in_record, is_done
from fedresearch.study.sweep.status import ONLY_JOB, job_names

# A job takes some 30 ms to compose: five minutes before the first one starts.
MAX_JOBS = 10_000

# Keys that Hydra reads from the sweep's config and never from a job's.
_SWEEP_KEYS = ("hydra.sweeper", "hydra.launcher", "hydra.sweep.dir")


@dataclass(frozen=True)
class Job:
    """A job before it starts: its overrides, its directory in the sweep's, its checked config, its options.

    ``changes`` are those of :func:`fedresearch.study.sweep.job.changes_in_record`.
    """

    overrides: list[str]
    directory: str
    config: config.Config
    choices: dict[str, str | None]
    changes: str = ""


def sweep_directory(sweep: DictConfig) -> Path:
    """Return the directory of a sweep.

    Raises
    ------
    InputError
        If it is empty.
    """
    if not sweep.hydra.sweep.dir:
        raise InputError("hydra.sweep.dir is empty; leave it out for one that the same command finds again")
    return Path(sweep.hydra.sweep.dir)


def knows_its_jobs(sweep: DictConfig) -> bool:
    """Return whether a sweep's jobs are known before they start: other sweepers choose them one after another."""
    return bool(sweep.hydra.runtime.choices["hydra/sweeper"] == "basic")


def compose_jobs(sweep: DictConfig) -> list[Job]:
    """Return the checked jobs of a sweep, each once.

    A value applies to the jobs whose options have its key. It is left out of the overrides of the other jobs; in that
    case the jobs are printed. Jobs with the same remaining overrides are one job.

    Raises
    ------
    InputError
        With one line for each mistake that names the first job with it.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    keep_none()
    words = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.params or {}).items()]
    words += config.unresolved_overrides(sweep.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    _refuse_impossible_numbers(overrides)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    jobs: dict[str, Job] = {}
    left_out: dict[str, list[str]] = {}  # key to the messages of the jobs whose options do not have it
    mistakes: dict[str, list[str]] = {}
    distinct = set()
    for words, name in zip(batch, job_names(batch), strict=True):
        try:
            composed, kept, unknown = _load(loader, sweep, words)
            for key, line in unknown.items():
                left_out.setdefault(key, []).append(line)
            if (*kept,) not in distinct:
                distinct.add((*kept,))
                _add(jobs, composed, kept, sweep)
        except Exception as error:
            explained = error if isinstance(error, InputError) else config.explain(error)
            if explained is None:
                raise
            for line in explained.args:
                mistakes.setdefault(line, []).append(name)
    mistakes |= {lines[0]: job_names(batch) for lines in left_out.values() if len(lines) == len(batch)}
    if mistakes:
        raise InputError(*(f"{_first_of(names)}{line}" for line, names in mistakes.items()))
    if len(jobs) < len(distinct):
        print(f"{len(distinct)} jobs, but only {len(jobs)} with different numbers: each of these runs once")
    if left_out:
        _print_jobs(list(jobs.values()), left_out)
    _warn_of_changes(list(jobs.values()), Path(sweep.hydra.sweep.dir))
    return list(jobs.values())


def _refuse_impossible_numbers(overrides: Sequence[Override]) -> None:
    """Refuse a sweep without jobs, or with too many; leave files that begin with _ out of globs."""
    numbers = {override.get_key_element(): (_num_values(override), override.input_line) for override in overrides}
    if empty := [word for number, word in numbers.values() if not number]:
        raise InputError(f"{empty[0]} has no values, so the sweep would have no job; give it values, or leave it out")
    total = prod(number for number, _ in numbers.values())
    if total > MAX_JOBS:
        _, longest = max(numbers.values())
        raise InputError(
            f"a sweep may have at most {MAX_JOBS:,} jobs, got more; try fewer values of {longest}, or several sweeps"
        )


def _num_values(override: Override) -> int:
    value: Any = override.value()
    if isinstance(value, Glob):
        value.exclude.append("_*")
    if not override.is_sweep_override():
        return 1
    if any(isinstance(item, Sweep) for item in getattr(value, "list", ())):
        raise InputError(f"{override.input_line} is a sweep of sweeps; write each value, with commas between them")
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line} leaves the choice to a sweeper such as hydra/sweeper=optuna; "
            f"try {override.get_key_element()}=VALUE,VALUE"
        )
    if not isinstance(value, RangeSweep):
        return len([*override.sweep_iterator()])
    start, stop, step = (Decimal(bound or 0) for bound in (value.start, value.stop, value.step))
    if not (step and start.is_finite() and stop.is_finite() and step.is_finite()):
        raise InputError(f"{override.input_line} never ends; a range has finite bounds and a step that is not 0")
    return max(0, ceil((stop - start) / step))


def _load(
    loader: ConfigLoaderImpl, sweep: DictConfig, words: Sequence[str]
) -> tuple[DictConfig, list[str], dict[str, str]]:
    """Return a job's config, the words that apply to it, and the messages for the keys that do not."""
    config.refuse_invalid_options(words)
    kept, unknown = [*words], dict[str, str]()
    while True:
        try:
            return ConfigLoaderImpl.load_sweep_config(loader, sweep, kept), kept, unknown
        except HydraException as error:
            if not (inapplicable := config.words_without_key(error, kept)):
                raise
            unknown |= {word.partition("=")[0]: str(config.explain(error)) for word in inapplicable}
            kept = [word for word in kept if word not in inapplicable]
        except Exception as error:
            raise config.explain_composition(error, words) from error


def _add(jobs: dict[str, Job], composed: DictConfig, words: list[str], sweep: DictConfig) -> None:
    """Add a job by its directory, unless it is there already.

    Raises
    ------
    InputError
        If its config breaks a rule, or its directory conflicts with another job's.
    """
    with open_dict(composed.hydra):
        composed.hydra.job.num = len(jobs)  # its place among the jobs that run
        composed.hydra.job.id = str(len(jobs))
    HydraConfig.instance().set_config(composed)  # for the config's ${hydra:...}, as it is set when the job runs
    for key in _SWEEP_KEYS:
        if OmegaConf.select(composed, key, default=None) != OmegaConf.select(sweep, key, default=None):
            raise InputError(
                f"one of its options sets {key}, as presets do that are sweeps themselves; such options cannot be "
                "swept: type a command for each"
            )
    parsed, choices = config.checked(without_hydra(composed), composed.hydra)
    directory = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
    path = PurePosixPath(directory)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(
            f"hydra.sweep.subdir must be a folder in the sweep's, got {directory or repr('')}; leave it out for one "
            "that the same command finds again"
        )
    digest = config.digest(parsed)
    if directory in jobs and config.digest(jobs[directory].config) != digest:
        raise InputError(
            f"hydra.sweep.subdir={directory} is the directory of another job too; leave it out, or try "
            "'hydra.sweep.subdir=${hydra.job.num}'"
        )
    changes = changes_in_record(Path(sweep.hydra.sweep.dir) / directory, parsed)
    if directory not in jobs:
        jobs[directory] = Job(words, directory, parsed, choices, changes)
        keep(words, composed)


def _first_of(names: Sequence[str]) -> str:
    """Return the start of an error line; "" where jobs do not differ."""
    if names[0] == ONLY_JOB:
        return ""
    return f"job {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: "


def _print_jobs(jobs: Sequence[Job], left_out: Mapping[str, object]) -> None:
    """Print the jobs, and the number of jobs that have each key that was left out of others."""
    having = Counter(word.partition("=")[0] for job in jobs for word in job.overrides)
    for key in left_out:
        print(f"{key} applies to {having[key]} of {len(jobs)} jobs: the others' options do not have it")
    for name in job_names([job.overrides for job in jobs]):
        print(f"  {name}")


def _warn_of_changes(jobs: Sequence[Job], directory: Path) -> None:
    """Warn of jobs that are done, and ran with another value than the sweep's."""
    names = job_names([job.overrides for job in jobs])
    done: dict[str, list[tuple[str, Path]]] = {}
    for job, name in zip(jobs, names, strict=True):
        if job.changes and is_done(path := directory / job.directory, job.config):
            done.setdefault(job.changes, []).append((name, path))
    for changes, found in done.items():
        print(
            f"warning: {_first_of([name for name, _ in found])}done with {changes}, and skipped; "
            f"to run it anew, move {found[0][1]} elsewhere",
            file=sys.stderr,
            flush=True,
        )
