"""The jobs of a sweep of Hydra's basic sweeper, composed and checked before any starts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, prod
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from fedresearch import config
from fedresearch.config.resolvers import without_hydra
from fedresearch.errors import InputError
from fedresearch.study.sweep.job import refuse_other
from fedresearch.study.sweep.status import ONLY_JOB, job_names

# Each takes some 50 ms to compose: ten minutes before the first one starts.
MAX_JOBS = 10_000

# What Hydra reads of the sweep's config alone, and never of a job's.
_OF_THE_SWEEP = ("hydra.sweeper", "hydra.launcher", "hydra.sweep.dir")


@dataclass(frozen=True)
class Job:
    """One job as it is before it starts: its overrides, its directory in the sweep's, its checked config."""

    overrides: list[str]
    directory: str
    config: config.Config
    choices: dict[str, str | None]


def compose_jobs(sweep: DictConfig) -> list[Job]:
    """Return the jobs of a sweep, checked, each once.

    A value applies to the jobs whose options have its key: where some do and some do not, it is left out of the others'
    overrides, and the jobs are listed. Jobs that come out the same are one.

    Raises
    ------
    InputError
        With one line for each mistake, naming the first job that has it.
    """
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.params or {}).items()]
    words += config.unresolved_overrides(sweep.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    _refuse_impossible_numbers(overrides)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    jobs: dict[str, Job] = {}
    left_out: dict[str, list[str]] = {}  # by key, what is said of it in each job whose options do not have it
    mistakes: dict[str, list[str]] = {}
    distinct = set()
    for words, shown in zip(batch, job_names(batch), strict=True):
        try:
            composed, kept, unknown = _load(loader, sweep, words)
            for key, line in unknown.items():
                left_out.setdefault(key, []).append(line)
            if (*kept,) not in distinct:
                distinct.add((*kept,))
                _add(jobs, composed, kept, sweep)
        except Exception as error:
            told = error if isinstance(error, InputError) else config.explain(error)
            if told is None:
                raise
            for line in told.args:
                mistakes.setdefault(line, []).append(shown)
    mistakes |= {lines[0]: job_names(batch) for lines in left_out.values() if len(lines) == len(batch)}
    if mistakes:
        raise InputError(*(f"{_of_jobs(of)}{line}" for line, of in mistakes.items()))
    if len(jobs) < len(distinct):
        print(f"{len(distinct)} jobs, of which {len(jobs)} differ in what changes a number: each of these runs once")
    if left_out:
        _list(list(jobs.values()), left_out)
    return list(jobs.values())


def _refuse_impossible_numbers(overrides: Sequence[Override]) -> None:
    """Refuse a sweep without jobs, or with more than can be composed; leave parts of options out of globs."""
    numbers = {override.get_key_element(): (_num_values(override), override.input_line) for override in overrides}
    if none := [word for number, word in numbers.values() if not number]:
        raise InputError(f"{none[0]} has no values, so that there would be no job; give it some, or leave it out")
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
    if any(isinstance(one, Sweep) for one in getattr(value, "list", ())):
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
    loader: ConfigLoader, sweep: DictConfig, words: Sequence[str]
) -> tuple[DictConfig, list[str], dict[str, str]]:
    """Return a job's config, the words that apply to it, and for the keys of the others what is said of them."""
    config.refuse_invalid_options(words)
    kept, unknown = [*words], dict[str, str]()
    while True:
        try:
            return loader.load_sweep_config(sweep, kept), kept, unknown
        except HydraException as error:
            if not (without := config.words_without_key(error, kept)):
                raise
            unknown |= {word.partition("=")[0]: str(config.explain(error)) for word in without}
            kept = [word for word in kept if word not in without]
        except Exception as error:
            raise config.explain_composition(error, words) from error


def _add(jobs: dict[str, Job], composed: DictConfig, words: list[str], sweep: DictConfig) -> None:
    """Add a job to those before it, by its directory, unless it is one of them.

    Raises
    ------
    InputError
        If it breaks a rule, or cannot be had beside the others.
    """
    with open_dict(composed.hydra):
        composed.hydra.job.num = len(jobs)  # its place among those that run
        composed.hydra.job.id = str(len(jobs))
    HydraConfig.instance().set_config(composed)  # for the config's ${hydra:...}, as it is set when the job runs
    for key in _OF_THE_SWEEP:
        if OmegaConf.select(composed, key, default=None) != OmegaConf.select(sweep, key, default=None):
            raise InputError(
                f"one of its options sets {key}, as a preset does that is a sweep of its own; such options cannot be "
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
    refuse_other(Path(sweep.hydra.sweep.dir) / directory, digest)
    jobs.setdefault(directory, Job(words, directory, parsed, choices))


def _of_jobs(jobs: Sequence[str]) -> str:
    first = jobs[0] if jobs[0] == ONLY_JOB else f"job {jobs[0]}"
    return f"{first}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''}: "


def _list(jobs: Sequence[Job], left_out: Mapping[str, object]) -> None:
    """Print which jobs have the keys that not all have."""
    having = Counter(word.partition("=")[0] for job in jobs for word in job.overrides)
    for key in left_out:
        print(f"{key} applies to {having[key]} of {len(jobs)} jobs: the others' options do not have it")
    for name in job_names([job.overrides for job in jobs]):
        print(f"  {name}")
