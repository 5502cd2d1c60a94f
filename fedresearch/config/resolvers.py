"""What ``conf/config.yaml`` asks of Python: the schema, and names of a sweep's directories that are found again."""

import copy
import hashlib
import json
import os
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fedresearch.config.schema import NOT_NUMERICAL, Config, counted_hardware, digest, parse


def register() -> None:
    """Make known to Hydra the schema, as ``base_config``, and the resolvers ``sweep_digest`` and ``job_digest``."""
    ConfigStore.instance().store(name="base_config", node=Config)
    # Cached by the text of its arguments: Hydra hands a sweep's cache on to its jobs, whose own overrides are others.
    OmegaConf.register_new_resolver("sweep_digest", sweep_digest, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_digest", job_digest, replace=True)


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a copy of a composed config without Hydra's own section, as a job is given it."""
    plain = copy.deepcopy(composed)
    with open_dict(plain):
        del plain["hydra"]
    return plain


def job_digest(*, _root_: DictConfig) -> str:
    """Return the digest of a composed config, or a name by its number for one that has none, and will be refused."""
    try:
        return digest(parse(without_hydra(_root_)))
    except Exception:
        return f"job_{OmegaConf.select(_root_, 'hydra.job.num')}"


def sweep_digest(
    overrides: ListConfig, sweeper: DictConfig, runtime: DictConfig, job: DictConfig, hardware: DictConfig | None
) -> str:
    """Return 12 hexadecimal digits of what was typed to sweep, without what changes no number.

    Jobs are named by their configs; this only keeps one sweep's together, and different sweeps apart.
    """
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    words += list(overrides)
    counting = [word for word in words if _counts(word, counted_hardware(hardware))]
    sources = runtime.config_sources
    folders = [os.path.relpath(source.path) for source in sources if "command-line" in source.provider]
    return hashlib.sha256(json.dumps([job.config_name, folders, sorted(counting)]).encode()).hexdigest()[:12]


def _counts(word: str, numbers: dict[str, Any]) -> bool:
    key, _, value = word.lstrip("+~").partition("=")
    section = key.partition(".")[0].partition("@")[0]
    if section == "hardware":
        return bool(numbers) or bool({",", "("} & set(value))  # swept, it may come to another
    return section not in NOT_NUMERICAL
