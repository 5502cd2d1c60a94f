"""The command without a verb: runs the experiment or the sweep that overrides describe, as an app of Hydra's.

Light until the config is known to be good.
"""

import gc
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedresearch import config
from fedresearch.config import compose_once
from fedresearch.config.arguments import in_hydras_order, refuse_blanks, refuse_other_words
from fedresearch.config.help_text import CONF
from fedresearch.errors import FULL_ERROR, InputError
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.stopping import no_signal_lost

config.register()
compose_once.register()

_OF_A_RUN = "raised by the run"


def main(arguments: list[str]) -> None:
    """Run the command on its arguments."""
    process = sys.modules.get("multiprocessing.process")
    if process and getattr(process.current_process(), "_inheriting", False):  # as Python's own check asks
        line = 'a worker imports the script that called main(); put the call below if __name__ == "__main__":'
        config.report_error(InputError(line))
        sys.exit(1)
    os.environ.setdefault(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    try:
        refuse_blanks(arguments)
        refuse_other_words(arguments)
        arguments = in_hydras_order(_with_resumed_overrides(arguments))
    except InputError as error:
        if config.report_error(error):
            sys.exit(1)
        raise
    sys.argv[1:] = arguments
    if not sys.flags.safe_path and str(Path.cwd()) not in map(os.path.abspath, sys.path):
        sys.path.append(str(Path.cwd()))  # for the user's own modules, as `python -m` does
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises an error instead of printing it
    warnings.filterwarnings("error", "provider=hydra.searchpath")  # a missing folder
    try:
        _run_hydra()
    except Exception as error:
        # An error without the note is Hydra's: it could not compose the command line.
        if _OF_A_RUN not in getattr(error, "__notes__", ()) and config.report_error(
            config.explain_composition(error, sys.argv[1:])
        ):
            sys.exit(1)
        raise


def _with_resumed_overrides(arguments: list[str]) -> list[str]:
    """Prepend the overrides of the run that ``resume`` names, and change to the working directory of that run.

    Raises
    ------
    InputError
        If the run does not exist, or the arguments describe a sweep or name another directory.
    """
    plain = [word.lstrip("+") for word in arguments]
    named = [word.removeprefix("resume=").strip("'\"") for word in plain if word.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return arguments
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(plain):
        raise InputError("resume continues one run; to continue a sweep, type its own command again")
    if any(word.startswith("hydra.run.dir=") for word in plain):
        raise InputError("resume continues in the run's own directory; remove hydra.run.dir")
    from fedresearch.runs.files import is_folder
    from fedresearch.runs.record import RECORD, read_record, refuse_no_run
    from fedresearch.runs.record_fields import NEEDED_TO_RESUME, refuse_invalid_fields

    refuse_no_run(Path(named[-1]))
    directory = Path(named[-1]).absolute()
    record = read_record(directory)
    refuse_invalid_fields(directory / RECORD, record, *NEEDED_TO_RESUME)
    typed_in = Path(record["working_directory"])
    if is_folder(typed_in):
        os.chdir(typed_in)  # its overrides may contain relative paths
    typed = [word for word in arguments if not word.lstrip("+").startswith("resume=")]
    where = config.quoted(str(directory))
    named_dirs = [word for word in typed if word.startswith(("--config-dir", "-cd"))]
    flags = [f"--config-dir={folder}" for folder in record["config_dirs"]] if not named_dirs else []
    words = config.merge_overrides(record["overrides"], typed)
    # hydra.mode=RUN, since the run may have been one job of a sweep that its experiment describes.
    return [*flags, *words, "hydra.mode=RUN", f"resume={where}", f"hydra.run.dir={where}"]


def _run_hydra() -> None:
    """Run Hydra on the command line, whose single values may apply to only some options of a sweep.

    Hydra composes the config of the sweep itself with the single values but without the swept options. If a key does
    not exist there, pass its value to the jobs as a sweep of one value.
    """
    refused = None
    while True:
        try:
            run()
            return
        except HydraException as error:
            words = config.words_without_key(error, sys.argv[1:])
            first = refused or error  # without a sweep, this one causes all later errors
            if not words or _OF_A_RUN in getattr(error, "__notes__", ()):
                break
            if not any(map(_may_begin_a_sweep, sys.argv[1:])):
                break
            refused = first
            sys.argv[1:] = [_swept(word) if word in words else word for word in sys.argv[1:]]
    raise first


def _may_begin_a_sweep(word: str) -> bool:
    """Return whether a word is a flag, sets a key of Hydra's own, or names an option that may do so."""
    return word.lstrip("+").startswith(("-", "hydra", "experiment=", "tune="))


def _swept(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}=choice({value or repr('')})"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Run one composed experiment in Hydra's run directory. As a job of a sweep, run the rest of it and raise no error.

    Return the value that a sweeper optimises if it chooses its jobs one after another; otherwise None.
    """
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        _run(composed, hydra_config, directory, in_sweep)
    except Exception as error:
        if not in_sweep:
            if config.report_error(error):
                sys.exit(1)
            error.add_note(_OF_A_RUN)
            raise
        from fedresearch.study.sweep import job

        job.report_failure(directory, error)
    except KeyboardInterrupt:
        from fedresearch.runs.record import RECORD

        if not in_sweep and (directory / RECORD).exists():
            print(f"fedresearch {shlex.quote(f'resume={directory}')}", file=sys.stderr, flush=True)
        raise
    finally:
        if not in_sweep and not directory.samefile(".") and not any(directory.iterdir()):
            directory.rmdir()
    optimised = in_sweep and hydra_config.runtime.choices["hydra/sweeper"] != "basic"
    if not optimised:
        return None
    from fedresearch.study.sweep import job

    return job.objective(directory, OmegaConf.select(composed, "federation.num_rounds"))


def _run(composed: DictConfig, hydra_config: HydraConf, directory: Path, in_sweep: bool) -> None:
    if not in_sweep and not hydra_config.run.dir:
        raise InputError("hydra.run.dir is empty; leave it out for a new directory")
    parsed, choices = config.checked(composed, hydra_config)
    # Only now, as all that takes time to import: a mistake is reported before that.
    from fedresearch.study.sweep import job
    from fedresearch.study.sweep.status import name_of

    if in_sweep and job.is_settled(directory, parsed):
        return

    overrides = config.unresolved_overrides(hydra_config.overrides.task)
    request = RunRequest(
        config=parsed,
        choices=choices,
        directory=directory,
        overrides=[word for word in overrides if not word.startswith("resume=")],
        command=sys.orig_argv,
        config_dirs=_config_dirs(hydra_config),
        may_resume=in_sweep or parsed.resume is not None,
        job=name_of(directory, Path(hydra_config.runtime.cwd, hydra_config.sweep.dir)) if in_sweep else "",
    )
    # Torch and Flower take seconds.
    if config.runs_elsewhere(parsed):
        from fedresearch.superlink.submit import submit

        submit(request)
    else:
        _import_run_experiment()(request)
        if in_sweep:
            gc.collect()  # frees the job's dataset before the next job starts
            gc.freeze()  # what is left stays: modules that it imported, and what Hydra keeps of it


def _import_run_experiment() -> Callable[[RunRequest], None]:
    """Import what runs experiments, without garbage collections: they take a quarter of a second and find nothing."""
    is_new = "fedresearch.experiment.run" not in sys.modules
    if is_new:
        gc.disable()
    with no_signal_lost():
        from fedresearch.experiment.run import run_experiment
    if is_new:
        gc.freeze()  # later ones do not search what is there for good
        gc.enable()
    return run_experiment


def _config_dirs(hydra_config: HydraConf) -> list[str]:
    return [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
