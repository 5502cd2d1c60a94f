"""Checks of the command line that Hydra's parser would reject in many lines, or not at all."""

import shlex
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from fedresearch.config.compose import as_text, default_key_to_type, refuse_invalid_options
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError

# Flags of other programs, and the equivalent here.
_INSTEAD = {
    "--dry-run": "try --cfg job --resolve for a run's config, fedresearch sweep preflight for a sweep's jobs",
    "--config": "try --config-dir DIR for your own options, or experiment=NAME",
    "--resume": "try resume=RUN_DIR",
    "--sweep": "try -m",
}


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


def refuse_flags(arguments: Sequence[str]) -> None:
    """Reject unknown flags, and overrides without a key or an option.

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
            meant = default_key_to_type(CONF, key, value) or f"{key}={value or '...'}"
            hint = f"keys are written without dashes: {meant}; see --help"
        raise InputError(f"unknown flag {flag}; {hint}")
    if known.experimental_rerun is not None:  # Hydra would execute the file's pickle
        raise InputError("--experimental-rerun is not supported; try fedresearch reproduce RUN_DIR")
    refuse_invalid_options(known.overrides)
