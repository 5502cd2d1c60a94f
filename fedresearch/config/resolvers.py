"""Registers what ``conf/`` uses from Python: the schema, reproducible names of directories, tuned values."""

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import AnyNode, DictConfig, ListConfig, Node, OmegaConf, open_dict

from fedresearch.config.help_text import CONF
from fedresearch.config.options import follows
from fedresearch.config.quicker_hydra import quicken
from fedresearch.config.rules import as_written
from fedresearch.config.schema import Config, as_typed, chosen_lists, counted_hardware, counts, digest, parse
from fedresearch.dotted_keys import as_json, leaves
from fedresearch.errors import InputError, reason


def register() -> None:
    """Register the schema with Hydra, as ``base_config``, and the resolvers of this module; make Hydra quicker."""
    quicken()
    ConfigStore.instance().store(name="base_config", node=Config)
    # Cached, since the overrides of a job differ from those of its sweep: Hydra passes the sweep's cache to its jobs.
    OmegaConf.register_new_resolver("sweep_digest", sweep_digest, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_digest", job_digest, replace=True)
    OmegaConf.register_new_resolver("tuned", tuned, replace=True)


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a copy of a composed config without Hydra's own section, as a job receives it."""
    unread = {id(composed._get_node("hydra")): AnyNode()}  # half of the config, which the copy is without
    plain = copy.deepcopy(composed, unread)
    with open_dict(plain):
        del plain["hydra"]
    return plain


def unresolved_overrides(overrides: Any) -> list[str]:
    """Return Hydra's list of overrides without resolving interpolations, which a job resolves in its own config."""
    words = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(words, list)
    return words


def job_digest(*, _root_: DictConfig) -> str:
    """Return the digest of a composed config; if it is invalid and has none, a name by the number of the job."""
    try:
        return digest(parse(without_hydra(_root_)))
    except Exception:
        return f"job_{OmegaConf.select(_root_, 'hydra.job.num')}"


def sweep_digest(
    overrides: ListConfig, sweeper: DictConfig, runtime: DictConfig, job: DictConfig, hardware: DictConfig | None
) -> str:
    """Return 12 hexadecimal digits of the sweep that was typed, ignoring what does not change the numbers.

    Jobs are named by their configs; this only keeps the jobs of a sweep together and different sweeps apart.
    """
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    words += unresolved_overrides(overrides)
    counting = [word for word in words if _counts(word, counted_hardware(hardware))]
    sources = runtime.config_sources
    folders = [os.path.relpath(source.path) for source in sources if "command-line" in source.provider]
    return hashlib.sha256(json.dumps([job.config_name, folders, sorted(counting)]).encode()).hexdigest()[:12]


def tuned(table: Any, *, _root_: DictConfig, _node_: Node) -> Any:
    """Return the value that :mod:`fedresearch.study.tune` chose for the cell of a config.

    Parameters
    ----------
    table : Any
        The file that it wrote, or the name of one in ``conf/tune``.

    Raises
    ------
    InputError
        If the file is unreadable, is for another key, or has no value for this cell; or if its runs had this seed, or
        have a common value that differs in this config.
    """
    table = str(table)
    path = Path(table) if table.endswith(".json") else CONF / "tune" / f"{table}.json"
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))
        key, keys, seeds = chosen["key"], [*chosen["keys"]], [*chosen["seeds"]]
        values = {as_json(entry["cell"]): entry["value"] for entry in chosen["cells"]}
        fixed = {
            as_json(entry["cell"]): {**chosen.get("fixed", {}), **entry.get("fixed", {})} for entry in chosen["cells"]
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} holds no tuned values ({reason(error)}); fedresearch tune writes such files"
        ) from None
    asked = _node_._get_full_key(None)
    if asked != key:
        raise InputError(f"{path} holds values of {key}, and {asked} asks for one; try {key}=${{tuned:{table}}}")
    if _root_.seed in seeds:
        raise InputError(f"{path} was chosen on runs with seed={_root_.seed}; try another seed, such as seed=0")
    lists = {group: as_typed(names) for group, names in chosen_lists(_root_).items()}
    options = {**HydraConfig.get().runtime.choices, **lists}
    cell = as_json([options[name] if name in options else _selected(_root_, name) for name in keys])
    if cell not in values:
        raise InputError(f"{path} has no value for {', '.join(keys)} = {cell}; it has values for {', '.join(values)}")
    here = {**options, **_resolved(_root_, key, values[cell])}
    tried = fixed[cell]
    differing = [name for name in tried if name not in here or as_json(here[name]) != as_json(tried[name])]
    other_options = [name for name in differing if "." not in name]
    differing = [name for name in differing if not follows(name, other_options)]
    if differing:
        listed = ", ".join(
            f"{name}={as_written(tried[name])} (here {as_written(here[name]) if name in here else 'unset'})"
            for name in differing[:3]
        )
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{path} was tuned with {listed}{more}; tune this cell with fedresearch tune, or write {key}=VALUE"
        )
    return values[cell]


def _selected(root: DictConfig, key: str) -> Any:
    value = OmegaConf.select(root, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _resolved(root: DictConfig, key: str, value: Any) -> dict[str, Any]:
    """Return the dotted keys and values of a config, with a value for the key that is being resolved."""
    plain = copy.deepcopy(root)
    with open_dict(plain):
        plain.pop("hydra", None)
    OmegaConf.update(plain, key, value, merge=False)
    container: Any = OmegaConf.to_container(plain, resolve=True)
    return dict(leaves(container))


def _counts(word: str, numbers: dict[str, Any]) -> bool:
    key, _, value = word.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    if key.partition(".")[0] == "hardware":
        return bool(numbers) or bool({",", "("} & set(value))  # a sweep may include another value
    return counts(key)
