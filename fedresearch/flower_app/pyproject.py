"""Reads the pyproject.toml of a Flower app, and the changes on the command line."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError
from fedresearch.runs.files import refuse_no_folders

# An app makes lists of this size, of node ids and of messages.
MOST_SUPERNODES = 10**6
# As Flower splits its arguments.
_PAIR = re.compile(r"\S+?=('[^']*'|\"[^\"]*\"|\S+)")


@dataclass(frozen=True)
class AppFolder:
    """The contents of the pyproject.toml of a Flower app.

    Parameters
    ----------
    path : Path
        The folder.
    serverapp, clientapp : str
        References, ``"package.module:attribute"``.
    config : mapping
        The run config, its nested keys joined by dots.
    num_supernodes : int or None
        Of its default federation; None if that does not set it.
    """

    path: Path
    serverapp: str
    clientapp: str
    config: Mapping[str, Any]
    num_supernodes: int | None

    @classmethod
    def read(cls, path: Path) -> "AppFolder":
        """Read the folder's pyproject.toml.

        Raises
        ------
        InputError
            If it is not the pyproject.toml of a Flower app.
        """
        file = path / "pyproject.toml"
        try:
            project = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError:
            refuse_no_folders([path], "name the folder that flwr run needs, with its pyproject.toml")
            above = next((str(folder) for folder in path.parents if (folder / "pyproject.toml").is_file()), "")
            raise InputError(f"{path} has no pyproject.toml; try {above or 'the folder that flwr run needs'}") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{file} is not TOML: {error}") from None
        components = _table(project, "tool", "flwr", "app", "components")
        for name in ("serverapp", "clientapp"):
            if not isinstance(components.get(name), str):
                raise InputError(
                    f"{file} names no {name} in [tool.flwr.app.components]; "
                    f'try {name} = "package.{name.removesuffix("app")}_app:app"'
                )
        config = dict(_flattened(_table(project, "tool", "flwr", "app", "config"), f"{file}, [tool.flwr.app.config]"))
        federations = _table(project, "tool", "flwr", "federations")
        options = _table(federations, str(federations.get("default")), "options")
        num_supernodes = options.get("num-supernodes")
        if num_supernodes is not None and (
            type(num_supernodes) is not int or not 1 <= num_supernodes <= MOST_SUPERNODES
        ):
            raise InputError(
                f"{file}: num-supernodes must be an integer from 1 to {MOST_SUPERNODES}, got {num_supernodes}"
            )
        return cls(path, components["serverapp"], components["clientapp"], config, num_supernodes)


def run_config(defaults: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return an app's run config.

    Parameters
    ----------
    defaults : mapping
        The app's own.
    overrides : sequence of str
        Each ``'a=1 b="text"'`` or the path of a TOML file; the last value of a key counts.

    Raises
    ------
    InputError
        If an override cannot be read, or has a key that the app does not have.
    """
    config = dict(defaults)
    for text in overrides:
        for toml in [_read(Path(text))] if text.endswith(".toml") else _pairs(text, "--run-config"):
            changed = _loaded(toml, "--run-config")
            for key in changed:
                if key not in defaults:
                    close = difflib.get_close_matches(key, defaults, 1)
                    hint = f"try {close[0]}; " if close else ""
                    raise InputError(f"unknown key {key} in --run-config; {hint}known: {', '.join(defaults) or 'none'}")
            config |= changed
    return config


def node_config(text: str) -> dict[str, Any]:
    """Return further entries of the clients' node config.

    Parameters
    ----------
    text : str
        ``'a=1 b="text"'``, as ``flower-supernode --node-config`` takes it.

    Raises
    ------
    InputError
        If it cannot be read, or has a key that is set for each client.
    """
    config: dict[str, Any] = {}
    for toml in _pairs(text, "--node-config"):
        config |= _loaded(toml, "--node-config")
    for key in ("partition-id", "num-partitions"):
        if key in config:
            raise InputError(f"--node-config must not have {key}, which follows from --num-supernodes")
    return config


def _table(toml: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a table in a table; empty if missing."""
    for key in keys:
        found = toml.get(key)
        toml = found if isinstance(found, dict) else {}
    return toml


def _flattened(toml: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in toml.items():
        if isinstance(value, dict):
            yield from _flattened(value, where, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + key, value
        else:
            raise InputError(f"{where}: {prefix}{key} must be a number, true, false or text, got {value}")


def _loaded(toml: str, option: str) -> dict[str, Any]:
    try:
        return dict(_flattened(tomllib.loads(toml), option))
    except tomllib.TOMLDecodeError:
        raise InputError(
            f"{option} cannot read {toml}; values are numbers, true, false and quoted text, "
            f"""as in {option} 'lr=0.1 name="text"'"""
        ) from None


def _read(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--run-config cannot read {file}: {error.strerror}") from None


def _pairs(text: str, option: str) -> list[str]:
    rest = _PAIR.sub("", text).strip()
    if rest:
        raise InputError(f"{option} has {rest}, which is not key=value; try {option} 'key=value key=value'")
    return [pair[0] for pair in _PAIR.finditer(text)]
