"""The command ``fedresearch reproduce RUN_DIR``: rerun a finished run, and compare the rounds' numbers."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from fedresearch import config
from fedresearch.config.help_text import CONF
from fedresearch.config.verbs import VerbParser, reporting
from fedresearch.errors import InputError, printing
from fedresearch.masking import masked_tree
from fedresearch.runs.comparison import compare_rows, format_changes, record_differences
from fedresearch.runs.files import is_folder
from fedresearch.runs.record import FINAL, RECORD, read_record, read_rows, read_run, refuse_no_run, state_of
from fedresearch.runs.record_fields import NEEDED_TO_RERUN, refuse_invalid_fields

_DESCRIPTION = """\
Rerun a finished run from its record, and compare the rounds' numbers. If the
config would give different numbers now, the command stops before any training.
"""
_EPILOG = """\
Exit code: 0 if all rounds have the same numbers, to the last bit; 1 if not.

examples:
  fedresearch reproduce outputs/one
  fedresearch reproduce outputs/one hardware=workers --out outputs/again
"""

# Finds the modules of a run's folder after all others, as a run does.
_RERUN = "import sys; sys.path.append(sys.argv.pop(1)); from fedresearch.main import main; main()"


def reproduce(directory: Path, typed: Sequence[str], out: Path) -> bool:
    """Rerun a run in a new directory, print how many rounds have the same numbers, and return whether all do.

    Parameters
    ----------
    directory : Path
        The finished run's directory.
    typed : sequence of str
        Overrides that change no number.
    out : Path
        The directory of the rerun.

    Raises
    ------
    InputError
        If the run is not finished, its config gives different numbers now, or its rerun does not finish.
    """
    refuse_no_run(directory)
    record, rows = read_run(directory)
    refuse_invalid_fields(directory / RECORD, record, *NEEDED_TO_RERUN)
    if (state := state_of(directory)) not in FINAL:
        raise InputError(
            f"{directory} is {state}, and only finished runs can be reproduced; "
            f"finish it with: fedresearch resume={directory}"
        )
    if out.exists():
        raise InputError(f"{out} exists, and nothing is overwritten; try another --out, or leave it out")
    if misplaced := [word for word in typed if word.lstrip("+").startswith(("hydra.", "resume="))]:
        raise InputError(f"{misplaced[0]} is not for a rerun; remove it, and choose the rerun's directory with --out")
    typed_in = Path(record["working_directory"])
    folder = typed_in if is_folder(typed_in) else Path.cwd()
    config_dirs = [folder / path for path in record["config_dirs"]]
    overrides = config.merge_overrides(record["overrides"], ["tracker=none", *typed])
    rerun, _, _ = config.compose(CONF, overrides, config_dirs)
    _refuse_different_numbers(record, rerun, directory)
    if config.runs_elsewhere(rerun):
        print("this run uses a SuperLink; hardware=workers gives the same numbers", flush=True)
    flags = [word for path in config_dirs for word in ("--config-dir", str(path))]
    # Its experiment may be a sweep, of which this run was one job.
    words = [*overrides, "hydra.mode=RUN", f"hydra.run.dir={config.quoted(str(out.absolute()))}"]
    _run([*flags, *words], folder)
    if (state := state_of(out)) not in FINAL:
        raise InputError(f"the rerun in {out} is {state}; see above")
    changes = {
        heading: format_changes(found)
        for heading, found in record_differences(record, read_record(out)).items()
        if heading != "options"  # none of them changes a number
    }
    if changes:
        print(f"changed since the record: {'; '.join(f'{heading}: {found}' for heading, found in changes.items())}")
    numbers = compare_rows(rows, read_rows(out))
    print("\n".join(numbers.lines(("the record", "the rerun"))))
    return numbers.identical


def _refuse_different_numbers(record: Mapping[str, Any], rerun: config.Config, directory: Path) -> None:
    changed = [found for found in config.differences(record["config"], masked_tree(asdict(rerun))) if found.numerical]
    if changed:
        raise InputError(
            f"{directory} ran with different values: {format_changes((key, a, b) for key, a, b, _ in changed)}; "
            "leave out the override that changes it, or, "
            f"for a default that has changed since, type {' '.join(found.override for found in changed)}"
        )


def _run(arguments: Sequence[str], folder: Path) -> None:
    """Run the command line in a folder, with this package even if the folder holds another copy."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-c", _RERUN, str(folder), *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and records it
            raise


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    parser = VerbParser("reproduce", _DESCRIPTION, _EPILOG)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a finished run")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="overrides that change no number, such as hardware=workers"
    )
    default = Path(f"outputs/reproduced_{datetime.now():%Y-%m-%d_%H-%M-%S.%f}")
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        help="a new directory for the rerun (default: outputs/reproduced_DATE_TIME)",
    )
    identical = False
    with printing(), reporting():
        arguments = parser.parse_intermixed_args(words)
        identical = reproduce(arguments.run_dir, arguments.overrides, arguments.out)
    sys.exit(not identical)
