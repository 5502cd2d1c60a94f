"""The command: ``python -m fedresearch.main [overrides]`` composes an experiment, checks it, builds it and runs it."""

import gc
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from fedresearch import config
from fedresearch.config.explain import FULL_ERROR
from fedresearch.errors import InputError
from fedresearch.runs.files import is_folder
from fedresearch.runs.record import RECORD, read_record
from fedresearch.runs.shape import BEGUN, refuse_odd
from fedresearch.stopping import interruptible
from fedresearch.submission import Submission
from fedresearch.sweep import job
from fedresearch.usage import CONF, usage

config.register()

_OF_A_RUN = "raised by the run"
_INSTEAD = {
    "--dry-run": "try --cfg job --resolve for a run's config, python -m fedresearch.sweep preflight for a sweep's jobs",
    "--config": "try --config-dir DIR for options of your own, or experiment=NAME",
    "--resume": "try resume=RUN_DIR",
    "--sweep": "try -m",
}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Run one composed experiment in Hydra's run directory; as a sweep's job, what is left of it, raising nothing.

    Returned is what a sweeper optimises that chooses its jobs as it goes, and None in any other case.
    """
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        _run(composed, hydra_config, directory, in_sweep)
    except Exception as error:
        if not in_sweep:
            if config.tell(error):
                sys.exit(1)
            error.add_note(_OF_A_RUN)
            raise
        job.tell_failure(directory, error)
    except KeyboardInterrupt:
        if not in_sweep and (directory / RECORD).exists():
            print(f"python -m fedresearch.main {shlex.quote(f'resume={directory}')}", file=sys.stderr, flush=True)
        raise
    finally:
        if not in_sweep and not directory.samefile(".") and not any(directory.iterdir()):
            directory.rmdir()
    optimised = in_sweep and hydra_config.runtime.choices["hydra/sweeper"] != "basic"
    return job.objective(directory) if optimised else None


def _run(composed: DictConfig, hydra_config: HydraConf, directory: Path, in_sweep: bool) -> None:
    if not in_sweep and not hydra_config.run.dir:
        raise InputError("hydra.run.dir is empty; leave it out for a new directory")
    parsed, choices = config.checked(composed, hydra_config)
    if in_sweep and job.is_settled(directory, config.digest(parsed)):
        return
    submission = Submission(
        config=parsed,
        choices=choices,
        directory=directory,
        overrides=[word for word in config.as_typed(hydra_config.overrides.task) if not word.startswith("resume=")],
        command=sys.orig_argv,
        config_dirs=[s.path for s in hydra_config.runtime.config_sources if s.provider == "command-line"],
        again=in_sweep or parsed.resume is not None,
    )
    # Only now: torch and Flower take seconds to import, and a mistyped key is told before that.
    if config.runs_elsewhere(parsed):
        from fedresearch.submit import submit

        submit(submission)
    else:
        from fedresearch.run import run_experiment

        run_experiment(**vars(submission))
        if in_sweep:
            gc.collect()  # what the job held, its whole dataset, goes before the next


def main() -> None:
    """Run the command line. A mistake in it is told in one line each, without traceback, with exit code 1."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(usage(arguments), end="")
        return
    if "--version" in arguments:
        print(f"fedresearch {version('fedresearch')}")
        return
    try:
        if not all(map(str.strip, arguments)):
            raise InputError("an argument is empty; remove it, or write key=value, as in seed=1")
        _refuse_blanks(arguments)
        arguments = _with_the_past(arguments)
        # Hydra's parser wants its flags before the overrides.
        arguments.sort(key=lambda word: not word.startswith("-") and ("=" in word or word[0] == "~"))
        _refuse_flags(arguments)
    except InputError as error:
        config.tell(error)
        sys.exit(1)
    sys.argv[1:] = arguments
    os.environ.setdefault(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print itself
    warnings.filterwarnings("error", "provider=hydra.searchpath")  # which is not there
    try:
        with interruptible():
            _run_hydra()
    except KeyboardInterrupt as interrupt:
        sys.exit(str(interrupt) or "interrupted")
    except Exception as error:
        # What is not of a run is of Hydra, which could not make sense of the command line.
        if _OF_A_RUN not in getattr(error, "__notes__", ()) and config.tell(config.cannot_compose(error, sys.argv[1:])):
            sys.exit(1)
        raise


def _refuse_blanks(arguments: Sequence[str]) -> None:
    """Refuse values that blanks beside commas have torn apart.

    Raises
    ------
    InputError
        With what to type instead.
    """
    for number, word in enumerate(arguments):
        torn = [word]
        for behind in arguments[number + 1 :]:
            if "=" not in word or "=" in behind or not (torn[-1].endswith(",") or behind.startswith(",")):
                break
            torn.append(behind)
        whole = "".join(torn)
        if len(torn) > 1 or ("=" in word and word.endswith(",")):
            text = f", or for one text {config.as_text(' '.join(torn))}" if len(torn) > 1 else ""
            raise InputError(
                f"a value must have no blank beside a comma, and no comma at its end, got {' '.join(torn)!r}; "
                f"try {shlex.quote(whole.rstrip(','))}{text}"
            )


def _refuse_flags(arguments: list[str]) -> None:
    """Refuse what Hydra's parser would refuse in many lines, or not at all.

    Raises
    ------
    InputError
        With what to type instead.
    """

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see --hydra-help for flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        flag, _, value = word.partition("=")
        hint = _INSTEAD.get(flag)
        if hint is None:
            behind = [*arguments[arguments.index(word) + 1 :], "="][0]  # as in --lr 0.1
            value = value or behind * ("=" not in behind and not behind.startswith("-"))
            key = flag.lstrip("-")
            meant = config.default_key_to_type(CONF, key, value) or f"{key}={value or '...'}"
            hint = f"keys are written without dashes: {meant}; see --help"
        raise InputError(f"there is no flag {flag}; {hint}")
    if known.experimental_rerun is not None:  # Hydra would execute what the file pickles
        raise InputError("--experimental-rerun is not for runs; try python -m fedresearch.reproduce RUN_DIR")
    config.refuse_no_options(known.overrides)


def _run_hydra() -> None:
    """Run Hydra on the command line, in which single values may be for some of a sweep's options alone.

    Hydra composes a sweep's own config with its single values, but without the options that are swept. A value whose
    key is not there is left to the jobs, as a sweep of one value.
    """
    refused = None
    while True:
        try:
            run()
            return
        except HydraException as error:
            words = config.words_without_key(error, sys.argv[1:])
            first = refused or error  # without a sweep, all else is said because of this
            if not words or _OF_A_RUN in getattr(error, "__notes__", ()):
                break
            refused = first
            sys.argv[1:] = [_swept(word) if word in words else word for word in sys.argv[1:]]
    raise first


def _swept(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}=choice({value or repr('')})"


def _with_the_past(arguments: list[str]) -> list[str]:
    """Return the arguments with those before them that the run had that ``resume`` names, in its working directory.

    Raises
    ------
    InputError
        If there is no such run, it is to be swept, or to go on in another directory.
    """
    plain = [word.lstrip("+") for word in arguments]
    named = [word.removeprefix("resume=").strip("'\"") for word in plain if word.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return arguments
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(plain):
        raise InputError("resume goes on with one run; a sweep goes on when its own command is typed again")
    if any(word.startswith("hydra.run.dir=") for word in plain):
        raise InputError("resume goes on in the run's own directory, and takes no hydra.run.dir; leave that out")
    directory = Path(named[-1]).absolute()
    record = read_record(directory)
    refuse_odd(directory / RECORD, record, *BEGUN)
    typed_in = Path(record["working_directory"])
    if is_folder(typed_in):
        os.chdir(typed_in)  # its overrides may have relative paths
    typed = [word for word in arguments if not word.lstrip("+").startswith("resume=")]
    where = config.quoted(str(directory))
    named_dirs = [word for word in typed if word.startswith(("--config-dir", "-cd"))]
    flags = [f"--config-dir={folder}" for folder in record["config_dirs"]] if not named_dirs else []
    words = config.overrides_again(record["overrides"], typed)
    # Its experiment may be a sweep, of which it was one job.
    return [*flags, *words, "hydra.mode=RUN", f"resume={where}", f"hydra.run.dir={where}"]


if __name__ == "__main__":
    main()
