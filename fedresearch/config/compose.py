"""Composes an experiment without the command line."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, grammar_parser
from omegaconf.errors import GrammarParseError

from fedresearch.config.check import check
from fedresearch.config.options import our_keys
from fedresearch.config.resolvers import register, without_hydra
from fedresearch.config.rules import as_written
from fedresearch.config.schema import GROUPS, LISTS, Config, as_typed, chosen_lists, parse, refuse_added
from fedresearch.config.sections import is_name
from fedresearch.config.suggest import key_to_type
from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError
from fedresearch.masking import MASK

NAMES = (*GROUPS, "experiment", "tune")  # each takes the name of an option; the last two may be null


def compose(
    conf: Path, overrides: Sequence[str], config_dirs: Iterable[Path] = ()
) -> tuple[Config, dict[str, str | None], Path]:
    """Compose the default experiment with overrides, as the command line does.

    Parameters
    ----------
    conf : Path
        The folder of ``config.yaml``.
    overrides : sequence of str
        As typed.
    config_dirs : iterable of Path
        Folders of further options, as with ``--config-dir``.

    Returns
    -------
    config : Config
        Checked.
    choices : dict
        Config group to chosen option.
    directory : Path
        The run directory that Hydra would choose.

    Raises
    ------
    InputError
        If it breaks a rule.
    HydraException, OmegaConfBaseException
        If it does not compose; :func:`fedresearch.config.explain` turns the error into a line.
    """
    refuse_invalid_options(overrides)
    search_path = ",".join(quoted(f"file://{folder.absolute()}") for folder in config_dirs)
    with initialize_config_dir(str(conf), version_base="1.3"):
        register()
        composed = hydra_compose(
            "config", [*overrides, *([f"hydra.searchpath=[{search_path}]"] * bool(search_path))], True
        )
    HydraConfig.instance().set_config(composed)  # for the config's ${hydra:...}
    hydra_config = composed.hydra
    directory = Path(hydra_config.run.dir).absolute()
    return *checked(without_hydra(composed), hydra_config), directory


def checked(composed: DictConfig, hydra: Any) -> tuple[Config, dict[str, str | None]]:
    """Return a composed config, parsed and checked, and the chosen option of each config group.

    Parameters
    ----------
    composed : DictConfig
        Without Hydra's own section.
    hydra : HydraConf
        Hydra's own section.

    Raises
    ------
    InputError
        If it breaks a rule.
    """
    refuse_added(hydra, "hydra.")
    config = parse(composed)
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    lists = chosen_lists(plain)
    choices = {group: option for group, option in hydra.runtime.choices.items() if "/" not in group}
    choices |= {group: as_typed(names) for group, names in lists.items()}
    sources = hydra.runtime.config_sources
    folders = tuple(Path(source.path) for source in sources if source["schema"] == "file")
    chosen = [f"{group}/{name}" for group in GROUPS for name in lists.get(group, [choices.get(group)])]
    ours = {key for option in chosen for key in our_keys(option, folders)}
    check(config, choices, ours, {key for key, value in leaves(plain) if isinstance(value, str) and "${" in value})
    return config, choices


def refuse_invalid_options(words: Iterable[str]) -> None:
    """Reject overrides without a key, and values of a config group that are not the name of an option, or a list.

    Hydra rejects them too, but without naming them.

    Raises
    ------
    InputError
        With one line for each.
    """
    lines = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except (HydraException, ValueError):
            continue  # Hydra explains why
        key, value = override.key_or_group, override.value()
        if not key:
            lines.append(f"{word!r} has no key; write key=value")
        elif key not in NAMES or override.is_sweep_override() or override.is_delete():
            continue
        elif key in LISTS and not _names_several(value):
            allowed = "the names of different options in a list"
            lines.append(
                f"{key} must be {allowed}, got {as_written(value)}; try {key}=[], and see --help for its options"
            )
        elif key not in LISTS and not _names(key, value):
            lines.append(f"{key} must be the name of one option, got {as_written(value)}; see --help for its options")
    if lines:
        raise InputError(*lines)


def _names(group: str, value: Any) -> bool:
    """Return whether a value names an option of a group, or is a dict, which sets keys of the chosen option."""
    return isinstance(value, str | dict) or (value is None and group not in GROUPS)


def _names_several(value: Any) -> bool:
    """Return whether a value names one option, or is a list of different names."""
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and is_name(name) for name in names) and len({*names}) == len(names)


def default_key_to_type(conf: Path, key: str, value: str) -> str:
    """Return what to type for a key that the default experiment may not have; "" if nothing is similar."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        register()
        composed = hydra_compose("config")
    is_key = key in dict(leaves(OmegaConf.to_container(composed, resolve=False)))  # type: ignore[arg-type]
    return shlex.quote(f"{key}={value or '...'}") if is_key else key_to_type(key, value, composed)


def merge_overrides(recorded: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return recorded overrides and new ones, without the recorded ones that a new key or option replaces.

    Raises
    ------
    InputError
        If a recorded override that is kept held a secret, since secrets are not recorded.
    """
    keys = {_key(word) for word in typed}
    replaced = tuple(f"{group}." for group in keys & {"hardware", "tracker"})
    kept = [word for word in recorded if _key(word) not in keys and not _key(word).startswith(replaced)]
    secret = [_key(word) for word in kept if MASK in word]
    if secret:
        raise InputError(f"{', '.join(secret)} held a secret, and secrets are not recorded; type it again")
    return [*kept, *typed]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def quoted(text: str, quote: str = "'") -> str:
    """Return a string as the value of an override, in which only ``${`` has a special meaning."""
    doubled = re.sub(rf"(\\+)(?={quote}|\Z)", r"\1\1", text)  # a backslash is literal, except before a quote
    return quote + doubled.replace(quote, f"\\{quote}") + quote


def as_text(word: str) -> str:
    """Return what to type in a shell to make the text after the first ``=`` the literal value of an override."""
    key, _, value = word.partition("=")
    try:
        grammar_parser.parse(value)
    except GrammarParseError:  # a ${ that does not begin an interpolation
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{shlex.quote(key)}=" + shlex.quote(quoted(value, '"'))
