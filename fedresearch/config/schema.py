"""The config as dataclasses: names and types of the keys that every experiment has, with any options."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError


@dataclass
class Federation:
    """Which clients take part, and for how long. ``num_supernodes`` None: as many as the partitioner makes.

    ``target_accuracy`` None: the run does all its rounds.
    """

    num_supernodes: int | None = MISSING
    num_rounds: int = MISSING
    fraction_train: float = MISSING
    fraction_evaluate: float = MISSING
    evaluate_initial: bool = MISSING
    evaluate_train: bool = MISSING
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
    """How often to write a checkpoint; ``every`` 0: never. ``best`` None: the best model is not saved."""

    every: Any = MISSING
    keep: int = MISSING
    best: str | None = MISSING


@dataclass
class Config:
    """One experiment. The options of the groups are free-form: their keys are arguments of what they build.

    A group of ``LISTS`` holds one section for each chosen option, in their order.
    """

    seed: int = MISSING
    name: str | None = MISSING
    dtype: str = MISSING
    precision: str = MISSING
    memory_format: str = MISSING
    cache_dir: str = MISSING
    resume: str | None = MISSING
    clients_table: bool = MISSING
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
    evaluate_sampling: Any = MISSING
    availability: Any = MISSING
    transform: Any = field(default_factory=dict)
    channel: Any = field(default_factory=dict)
    metrics: Any = field(default_factory=dict)
    hardware: Any = MISSING
    tracker: Any = MISSING


# Groups that take a list of options, whose order counts. The YAML of an option NAME has its keys under NAME.
LISTS = ("transform", "channel", "metrics")
GROUPS = (
    "dataset",
    "partitioner",
    "model",
    "optimizer",
    "schedule",  # is optimizer.schedule in the config
    "strategy",
    "sampling",
    "evaluate_sampling",
    "availability",
    *LISTS,
    "hardware",
    "tracker",
)

# Keys that a resume may change: they do not change the numbers of finished rounds.
MAY_CHANGE_ON_RESUME = ("federation.num_rounds", "federation.max_failures")

_PLACES = ("dataset.root", "dataset.path", "dataset.cache_dir")  # locations of the same data
_LABEL = ".declares.label"  # what reports call an option
# Sections that do not change the numbers of a run, except by `counted_hardware`.
_NOT_NUMERICAL = ("name", "cache_dir", "resume", "clients_table", "checkpoint", "hardware", "tracker")


def counts(key: str) -> bool:
    """Return whether a dotted key may change the numbers of a run; for hardware, see `counted_hardware`."""
    return key.partition(".")[0] not in _NOT_NUMERICAL and key not in _PLACES and not key.endswith(_LABEL)


def parse(config: DictConfig) -> Config:
    """Return the composed config as dataclasses and plain dicts, interpolations resolved.

    Raises
    ------
    InputError
        If a key was added (``+key=value``) to a section with a schema, or removed from one.
    """
    refuse_added(config)
    if missing := [one.name for one in fields(Config) if one.name not in config]:
        raise InputError(*(f"{key} is not set; write {key}=..., see --help" for key in missing))
    parsed = OmegaConf.to_object(config)
    assert isinstance(parsed, Config)
    return parsed


def refuse_added(config: DictConfig, prefix: str = "") -> None:
    """Reject keys that were added (``+key=value``) to sections with a schema: nothing would read them.

    Raises
    ------
    InputError
        With one line for each.
    """
    if lines := [f"unknown key {key}; keys can be added only to options of a group" for key in _added(config, prefix)]:
        raise InputError(*lines)


def _added(node: Any, prefix: str) -> Iterator[str]:
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    known = {one.name for one in fields(schema)}
    for key in node:
        if key in known:
            yield from _added(node._get_node(key), f"{prefix}{key}.")
        elif f"{prefix}{key}" != "hydra.env":  # a group of Hydra that is missing in its own schema
            yield f"{prefix}{key}"


def chosen_lists(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the chosen options of each group of ``LISTS``, in their order."""
    sections = {group: config.get(group) for group in LISTS}
    return {group: [*map(str, node)] if isinstance(node, Mapping) else [] for group, node in sections.items()}


def as_typed(names: Iterable[str]) -> str:
    """Return the names of a list of options as one types them: ``[clip,topk]``."""
    return f"[{','.join(names)}]"


def from_plain(plain: Mapping[str, Any]) -> Config:
    """Return the config of which ``plain`` is the ``asdict``."""
    sections = {"federation": Federation, "local": Local, "validation": Validation, "checkpoint": Checkpoint}
    return Config(**{key: sections[key](**value) if key in sections else value for key, value in plain.items()})


def runs_elsewhere(config: Config) -> bool:
    """Return whether the hardware runs the whole experiment, as a SuperLink does, and not only its clients."""
    return bool(config.hardware.get("declares", {}).get("runs") == "experiment")


def digest(config: Config, *, seeds: bool = True) -> str:
    """Return 12 hexadecimal digits that are equal for two configs exactly when their numbers should be.

    Parameters
    ----------
    config : Config
        The experiment. Its name, tracker, paths and cache do not count; of its hardware, only what changes the numbers.
    seeds : bool
        Whether seeds count; without them it is the digest of a cell of an ablation.
    """
    whole = asdict(config)
    plain = {k: v for k, v in leaves(whole) if counts(k) and (seeds or not is_seed(k))}
    plain |= chosen_lists(whole) | counted_hardware(config.hardware)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def is_seed(key: str) -> bool:
    """Return whether a dotted key is a seed: runs that differ only in seeds are replicates."""
    return key.rpartition(".")[2] == "seed"


def counted_hardware(hardware: Any) -> dict[str, Any]:
    """Return the values of the hardware that change the numbers of a run."""
    if not isinstance(hardware, Mapping):
        return {}
    counted = {}
    if "chunk" in hardware:  # changes the order of sums, as several threads do
        counted["chunk"] = hardware["chunk"]
    if hardware.get("threads", 1) != 1:
        counted["threads"] = hardware["threads"]
    if hardware.get("num_gpus"):
        counted["device"] = "cuda"
    elif hardware.get("device", "cpu") != "cpu":
        counted["device"] = str(hardware["device"]).partition(":")[0]
    return counted
