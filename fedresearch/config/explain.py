"""Errors of Hydra, OmegaConf and the disk, each as one line with what to type instead."""

import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from fedresearch.config.compose import NAMES, as_text
from fedresearch.config.rules import RULES, as_written
from fedresearch.config.schema import GROUPS, LISTS
from fedresearch.config.sections import FACTS
from fedresearch.config.suggest import key_to_type, option_to_type
from fedresearch.errors import FULL_ERROR, InputError, named, one_line, printable

_DISK_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
}


def explain(error: Exception) -> InputError | None:
    """Return the line for an error of composing the config or of the disk; None for any other error.

    Parameters
    ----------
    error : Exception
        What Hydra, OmegaConf or the operating system raised.
    """
    # OmegaConf wraps the error of a resolver in its own, maybe several times.
    raised: BaseException | None = error
    while isinstance(raised, OmegaConfBaseException):
        raised = raised.__context__
    if isinstance(raised, InputError):
        return raised
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        line = _unknown_option(error)
    elif isinstance(error, HydraException) and (of_a_file := _mistake_in_a_file(str(error))):
        line = of_a_file
    elif isinstance(cause, ConfigAttributeError | ConfigKeyError):
        line = _unknown_key(cause, str(error))
    elif isinstance(cause, ValidationError):
        line = _wrong_type(cause)
    elif isinstance(cause, MissingMandatoryValue):
        line = f"{cause.full_key} is not set; write {cause.full_key}=..., see --help"
    elif isinstance(error, OverrideParseException):
        line = f"cannot read {error.override!r}; {_how_to_type(error.override)}"
    elif isinstance(error, ConfigCompositionException) and str(error).startswith(
        ("Ambiguous value", "Sweep parameters")
    ):
        line = _sweep_without_m(str(error).splitlines()[0].partition("'")[2].rpartition("'")[0])
    elif isinstance(cause, InterpolationResolutionError) and re.match("Recursive|Interpolation to parent", str(cause)):
        section: Any = OmegaConf.to_container(cause.parent_node)
        value = as_written(section[cause.key])
        line = f"{cause.full_key} refers to itself, got {value}; write another value"
    elif isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        line = f"{mark.name} is not YAML: {error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    elif isinstance(error, HydraException) and str(error).startswith("Additional config directory"):
        line = f"{error}; try another --config-dir"
    elif isinstance(cause, HydraException | OmegaConfBaseException):
        line = " ".join(str(cause).splitlines()[:2])
    elif isinstance(error, OSError) and error.errno in _DISK_TROUBLE and (key := _key_of_directory(error.filename)):
        line = f"{error.strerror}{f': {error.filename}' if error.filename else ''}; try another {key}"
    else:
        return None
    return InputError(line)


def explain_composition(error: Exception, words: Sequence[str] = ()) -> InputError:
    """Return the line for any error that Hydra raised while composing the config.

    Parameters
    ----------
    error : Exception
        What was raised.
    words : sequence of str
        The command line, for errors that do not name their cause.
    """
    if isinstance(error, RecursionError):
        return InputError(
            "the defaults list of an option leads back to that option; see `defaults:` in the files of these options"
        )
    line = one_line(named(error))
    return explain(error) or InputError(f"cannot compose {shlex.join(words) or 'this command line'}: {line[:500]}")


def _key_of_directory(filename: Any) -> str:
    """Return the key of the directory that Hydra chose, if a file is in or above it; "" if not."""
    if not HydraConfig.initialized():
        return "hydra.run.dir"
    hydra = HydraConfig.get()
    swept = hydra.mode == RunMode.MULTIRUN
    directory = Path(hydra.runtime.cwd, hydra.sweep.dir if swept else hydra.run.dir)
    path = Path(filename).absolute() if isinstance(filename, str) else directory
    is_of_it = path.is_relative_to(directory) or directory.is_relative_to(path)
    return ("hydra.sweep.dir" if swept else "hydra.run.dir") if is_of_it else ""


def words_without_key(error: HydraException, words: Sequence[str]) -> list[str]:
    """Return the overrides whose unknown keys are why Hydra could not compose."""
    if not isinstance(cause := error.__cause__, ConfigAttributeError | ConfigKeyError):
        return []
    return [word for word in words if f"{word.partition('=')[0]}.".startswith(f"{cause.full_key}.")]


_LONGEST = 2000  # characters of a line, which may contain a long value


def report_error(error: Exception) -> bool:
    """Print the lines of an error that the user can fix; return whether it is one."""
    explained = error if isinstance(error, InputError) else explain(error)
    if explained is None or os.environ.get(FULL_ERROR) == "1":
        return False
    for line in explained.args:
        cut = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ... {line[-_LONGEST // 4 :]}"
        print(f"error: {printable(cut)}", file=sys.stderr)
    return True


def _how_to_type(word: str) -> str:
    """Return what to type instead of a word that Hydra's grammar rejects."""
    key, _, value = word.partition("=")
    if not (key and "=" in word and _is_override(f"{key}=0")):
        return "write key=value"
    if not value.isprintable():
        return "remove characters that are not printable, such as a line break"
    closed = [closed for closed in (f"{word}]", f"{key}=[{value}") if _is_override(closed)]
    hints = [*map(shlex.quote, closed[:1]), *([as_text(word)] if key not in NAMES else [])]
    return f"try {', or for one text '.join(hints)}" if hints else f"see --help for the options of {key}"


def _is_override(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _sweep_without_m(word: str) -> str:
    key, _, values = word.partition("=")
    line = f"{word} is a sweep of several values: add -m"
    if key in GROUPS:
        return line + f"; for a list, type {shlex.quote(f'{key}=[{values}]')}" * (key in LISTS)
    a_list = "" if "(" in values else f" for a list, type {shlex.quote(f'{key}=[{values}]')};"
    return f"{line};{a_list} for one text, type {as_text(word)}"


def _mistake_in_a_file(text: str) -> str | None:
    """Return the line for a file that sets unknown keys, as an option without its package line does."""
    found = re.match(
        r"In '(.+?)': (?:Config\w+Error raised while .*full_key: (\S+)|Could not override '\S+@(\S+)')", text, re.S
    )
    if not found:
        return None
    file, key = found[1], (found[2] or found[3])
    group = file.partition("/")[0]
    section, _, name = key.partition(".")
    if section not in GROUPS and any(rule.key == key for rule in RULES):  # every run has it, so the file's is dotted
        return f"{file}.yaml has {key} as one name; in YAML, write {section}: {{{name}: ...}}"
    if key.partition(".")[0] != group:
        return (
            f"{file}.yaml sets {key}, which the config does not have; see --cfg job for its keys" if found[2] else None
        )
    package = "optimizer.schedule" if group == "schedule" else "_global_"
    return f"{file}.yaml sets {key}, which the config does not have; its first line must be: # @package {package}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"unknown config {option}; remove --config-name and --config-path, and try experiment=NAME"
    first = group.partition("/")[0]
    if first in NAMES and "/_" not in group:  # a path was typed, not the name of an option
        group, option = first, f"{group}/{option}".removeprefix(f"{first}/")
    # For an option in a list, the error has only the search path.
    found = error.options or [
        p.stem for folder in re.findall("path=file://(.*)", str(error)) for p in Path(folder, group).glob("*.yaml")
    ]
    options = sorted({name for name in found if not name.startswith("_")})
    if not options:
        return f"unknown config group {group!r}; see --help for the groups"
    extra = {"hydra/launcher=joblib": "joblib", "hydra/sweeper=optuna": "optuna"}.get(f"{group}={option}")
    if extra:
        return f"{group}={option} needs a package that is not installed; try pip install 'fedresearch[{extra}]'"
    is_nothing = group in LISTS and option in ("none", "null", "off")
    meant = f"{group}=[]" if is_nothing else option_to_type(group, option, options)
    hint = f"try {meant}; " if meant else ""
    return f"{group}={option} does not exist; {hint}{group} may be {', '.join(options)}"


def _unknown_key(error: OmegaConfBaseException, message: str) -> str:
    section = str(error.full_key).rpartition(".")[0]
    node = error.parent_node
    keys = map(str, node.keys()) if node is not None else []
    hidden = ("hydra", *FACTS)
    known = sorted(key for key in keys if key[0] != "_" and f"{section}.{key}".lstrip(".") not in hidden)
    typed = re.search(r"To append to your config use \+([^=]*)=(.*)", message)
    key, value = (typed[1], typed[2]) if typed else (str(error.full_key), "")
    meant = key_to_type(key, value, node) if node is not None else ""
    if error.full_key == "schedule":
        return (
            "unknown key schedule; its options are optimizer.schedule.*, such as optimizer.schedule.gamma=0.5; "
            "a file in schedule/ begins with the line # @package optimizer.schedule"
        )
    if meant and not section:  # the keys beside it are those of all runs
        return f"unknown key {error.full_key}; try {meant}; see --help"
    hint = f"try {meant}; " if meant else f"another option may have it, see conf/{section}/; " * (section in GROUPS)
    return f"unknown key {error.full_key}; {hint}{section or 'the config'} has {', '.join(known) or 'no keys'}"


def _wrong_type(error: ValidationError) -> str:
    for rule in RULES:
        if rule.key == error.full_key:
            return rule.refusal(error.value)
    if not isinstance(error.value, dict) and "is not a subclass of" in str(error):
        section = error.full_key
        example = next((r for r in RULES if r.key.startswith(f"{section}.")), None)
        hint = f"; try {example.key}={example.example}" if example else ""
        return f"{section} must be a section of keys, got {as_written(error.value)}{hint}"
    return f"{error.full_key}: {str(error).splitlines()[0]}"
