"""The config as dataclasses: names and types of all that is the same whatever the groups' options are."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError


@dataclass
class Federation:
    """Who takes part, and for how long. ``num_supernodes`` None: as many clients as the partitioner makes.

    ``target_accuracy`` None: all rounds are done, whatever is reached.
    """

    num_supernodes: int | None = MISSING
    num_rounds: int = MISSING
    fraction_train: float = MISSING
    fraction_evaluate: float = MISSING
    evaluate_every: int = MISSING
    target_accuracy: float | None = MISSING
    max_failures: int = MISSING
    nonfinite: str = MISSING


@dataclass
class Local:
    """One client's training in one round; exactly one of ``epochs`` and ``steps``; ``batch_size`` 0: full batch."""

    epochs: int | None = MISSING
    steps: int | None = MISSING
    batch_size: int = MISSING
    keep_optimizer_state: bool = MISSING


@dataclass
class Validation:
    """The share that each client holds back from training; ``seed`` None: from the run's seed."""

    fraction: float = MISSING
    seed: int | None = MISSING


@dataclass
class Checkpoint:
    """How often a run is kept, such that it can go on; ``every`` 0: never. ``best`` None: no best model is kept."""

    every: Any = MISSING
    keep: int = MISSING
    best: str | None = MISSING


@dataclass
class Config:
    """One experiment. The groups' options are free-form: their keys are the arguments of what they build."""

    seed: int = MISSING
    name: str | None = MISSING
    dtype: str = MISSING
    memory_format: str = MISSING
    cache_dir: str = MISSING
    resume: str | None = MISSING
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    federation: Federation = field(default_factory=Federation)
    local: Local = field(default_factory=Local)
    validation: Validation = field(default_factory=Validation)
    dataset: Any = MISSING
    partitioner: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    strategy: Any = MISSING
    sampling: Any = MISSING
    hardware: Any = MISSING
    tracker: Any = MISSING


GROUPS = (
    "dataset",
    "partitioner",
    "model",
    "optimizer",
    "schedule",  # is optimizer.schedule in the config
    "strategy",
    "sampling",
    "hardware",
    "tracker",
)

_PLACES = ("dataset.root", "dataset.path", "dataset.cache_dir")  # where the same data lie
# What the numbers of a run do not depend on, but for `counted_hardware`.
_NOT_NUMERICAL = ("name", "cache_dir", "resume", "checkpoint", "hardware", "tracker")


def counts(key: str) -> bool:
    """Return whether a run's numbers may depend on a dotted key of its config, but for `counted_hardware`."""
    return key.partition(".")[0] not in _NOT_NUMERICAL and key not in _PLACES


def parse(config: DictConfig) -> Config:
    """Return the composed config as dataclasses and plain dicts, interpolations resolved.

    Raises
    ------
    InputError
        If a key was added (``+key=value``) to a section whose keys the schema knows, or one of these was removed.
    """
    refuse_added(config)
    if missing := [one.name for one in fields(Config) if one.name not in config]:
        raise InputError(*(f"{key} is not set; write {key}=..., see --help" for key in missing))
    parsed = OmegaConf.to_object(config)
    assert isinstance(parsed, Config)
    return parsed


def refuse_added(config: DictConfig, prefix: str = "") -> None:
    """Refuse keys that were added (``+key=value``) to sections whose keys a schema knows: nothing would read them.

    Raises
    ------
    InputError
        With one line for each.
    """
    if lines := [f"unknown key {key}; only the options of a group take further keys" for key in _added(config, prefix)]:
        raise InputError(*lines)


def _added(node: Any, prefix: str) -> Iterator[str]:
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    known = {one.name for one in fields(schema)}
    for key in node:
        if key in known:
            yield from _added(node._get_node(key), f"{prefix}{key}.")
        elif f"{prefix}{key}" != "hydra.env":  # a group of Hydra's that its own schema has no key for
            yield f"{prefix}{key}"


def from_plain(plain: Mapping[str, Any]) -> Config:
    """Return the config of which ``plain`` is the ``asdict``."""
    sections = {"federation": Federation, "local": Local, "validation": Validation, "checkpoint": Checkpoint}
    return Config(**{key: sections[key](**value) if key in sections else value for key, value in plain.items()})


def runs_elsewhere(config: Config) -> bool:
    """Return whether the hardware runs the whole experiment, as a SuperLink does, and not its clients alone."""
    return bool(config.hardware.get("declares", {}).get("runs") == "experiment")


def digest(config: Config, *, seeds: bool = True) -> str:
    """Return 12 hexadecimal digits that are equal for two configs exactly when their numbers should be.

    Parameters
    ----------
    config : Config
        The experiment. Its name, tracker, paths and cache do not count, nor its hardware, but for what its sums depend
        on.
    seeds : bool
        Whether seeds count: without them it is the digest of an ablation's cell.
    """
    plain = {k: v for k, v in leaves(asdict(config)) if counts(k) and (seeds or not is_seed(k))}
    plain |= counted_hardware(config.hardware)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def is_seed(key: str) -> bool:
    """Return whether a dotted key is a seed: runs that differ in these alone are replicates."""
    return key.rpartition(".")[2] == "seed"


def counted_hardware(hardware: Any) -> dict[str, Any]:
    """Return what the numbers of a run depend on of its hardware."""
    if not isinstance(hardware, Mapping):
        return {}
    counted = {}
    if "chunk" in hardware:  # sums are formed in another order, as with several threads
        counted["chunk"] = hardware["chunk"]
    if hardware.get("threads", 1) != 1:
        counted["threads"] = hardware["threads"]
    if hardware.get("num_gpus"):
        counted["device"] = "cuda"
    elif hardware.get("device", "cpu") != "cpu":
        counted["device"] = str(hardware["device"]).partition(":")[0]
    return counted
