"""What kind of value each field of a record is: a record may be whole, by its hash, and of no run."""

from collections.abc import Callable, Mapping
from typing import Any

from fedresearch.errors import InputError


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _section(value: Any) -> bool:
    return isinstance(value, Mapping)


def _section_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(holds, value.values()))


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _declaration(value: Any) -> bool:
    return _section_of(_text)(value) and value.get("direction") in ("up", "down", "none")


def _checkout(value: Any) -> bool:
    return isinstance(value, Mapping) and _text(value.get("commit")) and _or_null(_text)(value.get("diff_sha256"))


_GIT = {"git": _or_null(_section_of(_or_null(_checkout))), "versions": _or_null(_section_of(_text))}
_MACHINE = dict.fromkeys(("python", "platform", "processor"), _text)
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "status": _text,
    "config": _section,
    "choices": _section_of(_or_null(_text)),
}
_KNOWN: dict[str, Callable[[Any], bool]] = {
    **_NEEDED,
    **_GIT,
    **_MACHINE,
    **dict.fromkeys(("id", "name", "digest", "cell", "started", "working_directory"), _text),
    **{f"{of}_sha256": _text for of in ("partition", "validation", "initial_model", "sampling")},
    "metrics_sha256": _or_null(_text),
    "hardware": _or_null(_text),
    "overrides": _texts,
    "config_dirs": _texts,
    "own_models": lambda value: isinstance(value, bool),
    "personal": _texts,
    "columns": _section_of(_declaration),
    "result": _or_null(_section),
    "resumed": lambda value: isinstance(value, list) and all(map(_resumption, value)),
}


def _resumption(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        holds(value[name]) for name, holds in (_GIT | _MACHINE).items() if name in value
    )


# What it takes to run a run again, and to resume it.
NEEDED_TO_RERUN = ("overrides", "config_dirs", "working_directory")
NEEDED_TO_RESUME = (
    *NEEDED_TO_RERUN,
    "id",
    "started",
    *(f"{of}_sha256" for of in ("partition", "validation", "initial_model", "sampling")),
)


# Of the config, what is read of any run.
_CONFIG: dict[str, Callable[[Any], bool]] = {
    "seed": lambda value: type(value) is int,
    "federation": lambda value: isinstance(value, Mapping) and type(value.get("num_rounds")) is int,
    "hardware": _section,
    "metrics": _section,
}


def invalid_field(record: Mapping[str, Any], *needed: str) -> str | None:
    """Return the first field of a record that is missing, or of another kind than a run's; None where all are right."""
    for name, holds in _KNOWN.items():
        if (name in record or name in (*_NEEDED, *needed)) and not (name in record and holds(record[name])):
            return name
    config = record["config"]
    for name, holds in _CONFIG.items():
        if (name in config or needed) and not (name in config and holds(config[name])):
            return f"config.{name}"
    return None


def refuse_invalid_fields(where: Any, record: Mapping[str, Any], *needed: str) -> None:
    """Refuse a record that no run has.

    Parameters
    ----------
    where : Path
        Its file.
    record : mapping
        The record.
    needed : str
        Fields that must be there, beside those that all readers need; if any, the config's must be there too.

    Raises
    ------
    InputError
        With the first field that is missing, or of another kind.
    """
    odd = invalid_field(record, *needed)
    if odd is not None:
        raise InputError(f"{where} is not a run's record: {odd} is missing, or not what a run writes")
