"""Checks of the command line that Hydra's parser would reject in many lines, or not at all."""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from fedresearch.config.compose import NAMES, as_text, default_key_to_type, refuse_invalid_options
from fedresearch.config.help_text import CONF
from fedresearch.config.schema import GROUPS
from fedresearch.config.verbs import VERBS
from fedresearch.errors import InputError

# Flags of other programs, and the equivalent here.
_INSTEAD = {
    "--dry-run": "try --cfg job --resolve for a run's config, fedresearch sweep preflight for a sweep's jobs",
    "--config": "try --config-dir DIR for your own options, or experiment=NAME",
    "--resume": "try resume=RUN_DIR",
    "--sweep": "try -m",
}
# Verbs of other programs, and the equivalent here, with what else was typed.
_INSTEAD_OF_VERBS = {
    "run": "fedresearch{}",
    "train": "fedresearch{}",
    "help": "fedresearch{} --help",
    "version": "fedresearch --version",
    "status": "fedresearch sweep status{}",
    "preflight": "fedresearch sweep preflight{}",
}
_NEAR = 0.7  # difflib's ratio, so that seed is not near sweep
_FLAGS = ("--multirun", "--config-dir", "--resolve", "--info", "--help", "--version")
_NEAR_FLAG = 0.85  # so that a key such as --device is not near --resolve


def refuse_blanks(arguments: Sequence[str]) -> None:
    """Reject empty arguments, and values that a blank next to a comma has split.

    Raises
    ------
    InputError
        With what to type instead.
    """
    if not all(map(str.strip, arguments)):
        raise InputError("an argument is empty; remove it, or write key=value, as in seed=1")
    for number, word in enumerate(arguments):
        split = [word]
        for behind in arguments[number + 1 :]:
            if "=" not in word or "=" in behind or not (split[-1].endswith(",") or behind.startswith(",")):
                break
            split.append(behind)
        whole = "".join(split)
        if len(split) > 1 or ("=" in word and word.endswith(",")):
            text = f", or for one text {as_text(' '.join(split))}" if len(split) > 1 else ""
            raise InputError(
                f"a value must not have a blank next to a comma, or end with a comma, got {' '.join(split)!r}; "
                f"try {shlex.quote(whole.rstrip(','))}{text}"
            )


def in_hydras_order(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with flags before overrides, as Hydra's parser expects."""
    return sorted(arguments, key=lambda word: not word.startswith("-") and ("=" in word or word[0] == "~"))


def refuse_other_words(arguments: Sequence[str]) -> None:
    """Reject what is neither a flag nor an override, unknown flags, and overrides without a key or an option.

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
    flags = [word for word in unknown if word.startswith("-")]
    words = [*known.overrides, *(word for word in unknown if word not in flags)]
    for verb in words:
        if verb in VERBS and arguments[0] not in _INSTEAD_OF_VERBS:
            raise InputError(
                f"{verb} must be the first word, got {arguments[0]} before it; "
                f"try fedresearch {verb}{_others(verb, arguments)}"
            )
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if bare and (bare[0] == arguments[0] or not flags):  # behind an unknown flag, it may be the flag's value
        raise InputError(f"{bare[0]!r} is neither a verb nor key=value; {_meant(bare[0], arguments)}")
    for word in flags:
        flag, _, value = word.partition("=")
        near = get_close_matches(flag, _FLAGS, 1, _NEAR_FLAG)
        hint = _INSTEAD.get(flag) or (f"try {near[0]}" if near else "")
        if not hint:
            key, value = flag.lstrip("-"), value or _behind(word, arguments)  # as in --lr 0.1
            meant = default_key_to_type(CONF, key, value) or f"{key}={value or '...'}"
            hint = f"keys are written without dashes: {meant}; see --help"
        raise InputError(f"unknown flag {flag}; {hint}")
    if known.experimental_rerun is not None:  # Hydra would execute the file's pickle
        raise InputError("--experimental-rerun is not supported; try fedresearch reproduce RUN_DIR")
    refuse_invalid_options(words)


def _meant(word: str, arguments: Sequence[str]) -> str:
    """Return what to type for a word that is neither a flag nor an override."""
    if word in _INSTEAD_OF_VERBS:
        return f"try {_INSTEAD_OF_VERBS[word].format(_others(word, arguments))}"
    if word == arguments[0] and (near := get_close_matches(word, VERBS, 1, _NEAR)):
        return f"did you mean fedresearch {near[0]}{_others(word, arguments)}?"
    key, _, value = word.partition(":")
    value = value or _behind(word, arguments)
    if key in NAMES:
        return f"try {key}={shlex.quote(value or 'OPTION')}"
    options = [path.parent.name for path in CONF.glob("*/[!_]*.yaml") if path.stem == word]
    if groups := [group for group in options if group in GROUPS]:
        return f"try {groups[0]}={word}"
    if meant := default_key_to_type(CONF, key, value):
        return f"try {meant}"
    return f"verbs are {', '.join(VERBS)}; a run needs none, as in fedresearch strategy=fedavg; see --help"


def _behind(word: str, arguments: Sequence[str]) -> str:
    """Return the argument behind a word if it may be the word's value; "" if not."""
    behind = [*arguments[arguments.index(word) + 1 :], "="][0]
    return behind * ("=" not in behind and not behind.startswith("-"))


def _others(word: str, arguments: Sequence[str]) -> str:
    """Return the arguments without a word, as typed in a shell behind a blank."""
    at = arguments.index(word)
    return "".join(f" {shlex.quote(other)}" for other in [*arguments[:at], *arguments[at + 1 :]])
