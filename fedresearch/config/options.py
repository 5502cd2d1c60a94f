"""The keys of the options in ``conf/``, read from their files without composing them."""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedresearch.config.help_text import CONF
from fedresearch.config.quicker_hydra import load_yaml
from fedresearch.dotted_keys import leaves

SECTIONS = {"schedule": "optimizer.schedule"}  # for groups whose keys are not under their own name


def group_of(key: str) -> str:
    """Return the group whose options have a config's key; of an option's own key, its group."""
    return next((group for group, section in SECTIONS.items() if key.startswith(f"{section}.")), key.partition(".")[0])


def follows(key: str, groups: Iterable[str]) -> bool:
    """Return whether a config's key is a class or a declaration that follows from the option of one of some groups."""
    sections = tuple(f"{SECTIONS.get(group, group)}." for group in groups)
    return key.startswith(sections) and re.search(r"\.(_target_|declares\..+)$", key) is not None


@functools.cache  # each job of a sweep asks
def our_keys(option: str, folders: tuple[Path, ...] = ()) -> frozenset[str]:
    """Return the dotted keys that files of ``conf/`` give an option, itself or through its defaults list.

    Parameters
    ----------
    option : str
        ``GROUP/OPTION``.
    folders : tuple of Path
        Folders of further options. Those have keys of ``conf/`` only if their defaults lists name its options.
    """
    folder = next((folder for folder in (CONF, *folders) if (folder / f"{option}.yaml").is_file()), None)
    if folder is None:
        return frozenset()
    text = (folder / f"{option}.yaml").read_text(encoding="utf-8")
    content = load_yaml(text)
    if not isinstance(content, dict):
        return frozenset()
    keys = {key for part in _parts(content.get("defaults", ()), option) for key in our_keys(part, folders)}
    if folder == CONF:
        group = option.partition("/")[0]
        prefix = "" if text.startswith("# @package _global_") else f"{SECTIONS.get(group, group)}."
        keys |= {f"{prefix}{key}" for key, _ in leaves({**content, "defaults": {}})}
    return frozenset(keys)


def _parts(defaults: Any, option: str) -> Iterator[str]:
    """Yield the options that a defaults list includes, as ``GROUP/OPTION``."""
    for entry in defaults:
        ((name, value),) = entry.items() if isinstance(entry, dict) else ((entry, None),)
        name = str(name).partition("@")[0]
        if name != "_self_" and not name.startswith("override "):
            path = name if value is None else f"{name}/{value}"
            yield path[1:] if path.startswith("/") else f"{option.rpartition('/')[0]}/{path}"
