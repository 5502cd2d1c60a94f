"""What a value may be, and which values do not go together."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from fedresearch.config.schema import GROUPS, Config
from fedresearch.errors import InputError

# What is built from the config, by the dotted key of its node.
BUILT = ("dataset", "partitioner", "model", "optimizer", "strategy.server", "strategy.client", "hardware", "tracker")
# What the rest relies on, whatever the option.
NEEDED = (
    "dataset.declares.input",
    "dataset.declares.input_shape",
    "dataset.declares.num_classes",
    "dataset.declares.columns",
    "optimizer.lr",
)


class Rule(NamedTuple):
    """What the value at one dotted key must be, in code and in words, and one that may be typed instead."""

    key: str
    holds: Callable[[Any], bool]
    allowed: str
    example: str


def _integer(low: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and v >= low


def _real(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda v: type(v) in (int, float) and holds(v)


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or holds(v)


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and bool(v) and all(map(holds, v))


def _one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and v in allowed


_MAX = 1e38  # within float32

_positive = _real(lambda v: 0 < v < _MAX)
_not_negative = _real(lambda v: 0 <= v < _MAX)


def _boolean(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str)


INPUTS = ("image", "vector", "tokens")

# A rule applies where its key exists: an option that takes an argument of that name is held to it.
RULES = (
    Rule("seed", _integer(0), "an integer >= 0", "0"),
    Rule("dtype", _one_of("float32", "float64"), "float32 or float64", "float32"),
    Rule("federation.num_supernodes", _or_null(_integer(1)), "an integer >= 1, or null", "10"),
    Rule("federation.num_rounds", _integer(1), "an integer >= 1", "20"),
    Rule("federation.fraction_train", _real(lambda v: 0 < v <= 1), "in (0, 1]", "0.1"),
    Rule("federation.fraction_evaluate", _real(lambda v: 0 <= v <= 1), "in [0, 1]", "1.0"),
    Rule("federation.evaluate_every", _integer(1), "an integer >= 1", "1"),
    Rule("local.epochs", _or_null(_integer(1)), "an integer >= 1, or null", "5"),
    Rule("local.steps", _or_null(_integer(1)), "an integer >= 1, or null", "10"),
    Rule("local.batch_size", _integer(0), "an integer >= 0 (0: the full batch)", "10"),
    Rule("validation.fraction", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.2"),
    Rule("validation.seed", _or_null(_integer(0)), "an integer >= 0, or null", "42"),
    Rule("dataset.seed", _integer(0), "an integer >= 0", "0"),
    Rule("dataset.declares.input", _one_of(*INPUTS), "image, vector or tokens", "image"),
    Rule("dataset.declares.input_shape", _each(_integer(1)), "a list of integers >= 1", "[1,28,28]"),
    Rule("dataset.declares.num_classes", _integer(1), "an integer >= 1", "10"),
    Rule(
        "dataset.declares.columns",
        lambda v: isinstance(v, list) and all(map(_one_of("label", "natural_id"), v)),
        "a list of label and natural_id",
        "[label]",
    ),
    Rule("dataset.alpha", _not_negative, ">= 0", "1.0"),
    Rule("dataset.beta", _not_negative, ">= 0", "1.0"),
    Rule("dataset.iid", _boolean, "true or false", "false"),
    Rule("dataset.root", _or_null(_text), "a folder, or null", "DIR"),
    Rule("dataset.path", _or_null(_text), "a folder, or null", "DIR"),
    Rule("dataset.num_devices", _integer(1), "an integer >= 1", "30"),
    Rule("dataset.test_fraction", _real(lambda v: 0 < v < 1), "in (0, 1)", "0.1"),
    Rule("partitioner.seed", _or_null(_integer(0)), "an integer >= 0, or null", "42"),
    Rule("partitioner.num_partitions", _or_null(_integer(1)), "an integer >= 1", "10"),
    Rule("partitioner.alpha", lambda v: _positive(v) or _each(_positive)(v), "> 0", "0.5"),
    Rule("partitioner.min_partition_size", _integer(0), "an integer >= 0", "10"),
    Rule("partitioner.self_balancing", _boolean, "true or false", "false"),
    Rule("partitioner.rescale", _boolean, "true or false", "true"),
    Rule("partitioner.keep_incomplete_shard", _boolean, "true or false", "false"),
    Rule("partitioner.sort_unique_ids", _boolean, "true or false", "true"),
    Rule("partitioner.shuffle", _boolean, "true or false", "true"),
    Rule("partitioner.num_classes_per_partition", _integer(1), "an integer >= 1", "2"),
    Rule(
        "partitioner.class_assignment_mode",
        _one_of("random", "deterministic", "first-deterministic"),
        "random, deterministic or first-deterministic",
        "random",
    ),
    Rule("partitioner.num_shards_per_partition", _or_null(_integer(1)), "an integer >= 1, or null", "2"),
    Rule("partitioner.shard_size", _or_null(_integer(1)), "an integer >= 1, or null", "300"),
    Rule("partitioner.strictness", _real(lambda v: 0 <= v <= 1), "in [0, 1]", "0.5"),
    Rule("partitioner.partition_sizes", _each(_integer(1)), "a list of integers >= 1", "[50,100]"),
    Rule("partitioner.num_unique_labels_per_partition", _integer(1), "an integer >= 1", "2"),
    Rule("partitioner.preassigned_num_samples_per_label", _integer(0), "an integer >= 0", "5"),
    Rule("partitioner.group_size", _integer(1), "an integer >= 1", "2"),
    Rule("model.requires", lambda v: isinstance(v, dict), "a section of input and min_side", "{input:[image]}"),
    Rule("model.requires.input", _each(_one_of(*INPUTS)), "a list of image, vector and tokens", "[image]"),
    Rule("model.requires.min_side", _integer(1), "an integer >= 1", "16"),
    Rule("model.widths", _each(_integer(1)), "a list of integers >= 1", "[200,200]"),
    Rule("model.norm", _one_of("group", "batch"), "group or batch", "group"),
    Rule("model.groups", _integer(1), "an integer >= 1", "2"),
    Rule("optimizer.lr", _positive, "> 0 and below 1e38", "0.1"),
    Rule("optimizer.momentum", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("optimizer.nesterov", _boolean, "true or false", "false"),
    Rule("optimizer.weight_decay", _not_negative, ">= 0 and below 1e38", "0.0005"),
    Rule(
        "optimizer.betas",
        lambda v: _each(_real(lambda beta: 0 <= beta < 1))(v) and len(v) == 2,
        "a list of two numbers in [0, 1)",
        "[0.9,0.999]",
    ),
    Rule("optimizer.eps", _positive, "> 0", "1e-8"),
    Rule("strategy.server.fraction_train", _real(lambda v: v == 1), "1.0 (see federation.fraction_train)", "1.0"),
    Rule("strategy.server.fraction_evaluate", _real(lambda v: v == 1), "1.0 (see federation.fraction_evaluate)", "1.0"),
    Rule("strategy.server.weighted_by_key", _one_of("num-examples"), "num-examples", "num-examples"),
    Rule("strategy.server.arrayrecord_key", _one_of("arrays"), "arrays", "arrays"),
    Rule("strategy.server.configrecord_key", _one_of("config"), "config", "config"),
    Rule("strategy.server.server_learning_rate", _positive, "> 0 and below 1e38", "1.0"),
    Rule("strategy.server.server_momentum", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("strategy.server.eta", _positive, "> 0 and below 1e38", "0.1"),
    Rule("strategy.server.beta_1", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("strategy.server.beta_2", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.99"),
    Rule("strategy.server.tau", _positive, "> 0 and below 1e38", "0.001"),
    Rule("strategy.server.beta", _real(lambda v: 0 <= v < 0.5), "in [0, 0.5)", "0.2"),
    Rule("strategy.server.q", _not_negative, ">= 0 and below 1e38", "0.1"),
    Rule("strategy.server.client_learning_rate", _positive, "> 0 and below 1e38", "0.1"),
    Rule("strategy.server.num_malicious_nodes", _integer(0), "an integer >= 0", "1"),
    Rule("strategy.server.num_nodes_to_select", _integer(1), "an integer >= 1", "3"),
    Rule("strategy.server.min_train_nodes", _integer(1), "an integer >= 1", "1"),
    Rule("strategy.server.min_evaluate_nodes", _integer(1), "an integer >= 1", "1"),
    Rule("strategy.server.min_available_nodes", _integer(1), "an integer >= 1", "1"),
    Rule(
        "tracker.mode",
        _one_of("auto", "online", "offline", "disabled"),
        "auto, online, offline or disabled",
        "offline",
    ),
)


def cohort_size(num_supernodes: int, fraction: float) -> int:
    """Return how many of the clients a fraction of them is: rounded down, as in Flower, but at least one.

    The small addition keeps 0.29 of 100 at 29, which as a product of floats is 28.999...
    """
    return max(1, int(num_supernodes * fraction + 1e-9))


def check(config: Config, choices: Mapping[str, str | None]) -> None:
    """Hold a config to its rules.

    Parameters
    ----------
    config : Config
        The experiment.
    choices : dict
        Group to chosen option, for the messages.

    Raises
    ------
    InputError
        With one line for each thing that is wrong.
    """
    plain = asdict(config)
    lines = [
        f"{group} takes one option, got several or none; see --help, and write {group}=OPTION"
        for group in GROUPS
        if not isinstance(choices.get(group), str)
    ]
    lines += [
        f"{rule.key} must be {rule.allowed}, got {shown(value)}; try {rule.key}={rule.example}"
        for rule in RULES
        for value in _values_at(plain, rule.key)
        if not rule.holds(value)
    ]
    for key in BUILT:
        node = next(_values_at(plain, key), None)
        if not isinstance(node, dict) or not _text(node.get("_target_")) or {"_partial_", "_args_"} & node.keys():
            group = key.partition(".")[0]
            lines.append(
                f"{group}={choices.get(group)}: {key} must be a section with a _target_, without _partial_ and _args_; "
                "see --help for options"
            )
    lines += [f"{key} is missing; its option's YAML must give it" for key in NEEDED if not [*_values_at(plain, key)]]
    # Values that are wrong alone are told alone: what follows takes each value for a possible one.
    lines = lines or [*_cross_check(config, choices)]
    if lines:
        raise InputError(*lines)


def _cross_check(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    federation, local, validation = config.federation, config.local, config.validation
    if (local.epochs is None) == (local.steps is None):
        both = "both null" if local.epochs is None else f"{local.epochs} and {local.steps}"
        yield (
            f"exactly one of local.epochs and local.steps must be set, got {both}; try "
            f"local.epochs={local.epochs or 5} local.steps=null, or local.epochs=null local.steps={local.steps or 10}"
        )
    if federation.fraction_evaluate > 0 and validation.fraction == 0:
        yield (
            "federation.fraction_evaluate > 0 needs validation data on the clients, got validation.fraction=0; "
            "try federation.fraction_evaluate=0"
        )
    yield from _check_partitions(config, choices)
    yield from _check_cohorts(config)
    declares, requires = config.dataset["declares"], config.model.get("requires", {})
    if declares["input"] not in requires.get("input", [declares["input"]]):
        yield (
            f"model={choices['model']} takes {' or '.join(requires['input'])} input, "
            f"got dataset={choices['dataset']}, whose input is {declares['input']}; try model=mlp or another dataset"
        )
    elif "min_side" in requires and min(declares["input_shape"][1:]) < requires["min_side"]:
        side = requires["min_side"]
        yield (
            f"model={choices['model']} needs images of at least {side} x {side} pixels, got dataset="
            f"{choices['dataset']} with {declares['input_shape'][1]} x {declares['input_shape'][2]}; try model=mlp"
        )
    if config.optimizer.get("nesterov") and not config.optimizer.get("momentum"):
        yield "optimizer.nesterov=true needs momentum, got optimizer.momentum=0; try optimizer.momentum=0.9"


def _check_partitions(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    partitioner, num_supernodes = config.partitioner, config.federation.num_supernodes
    declares = config.dataset["declares"]
    columns = declares["columns"]
    by = partitioner.get("partition_by")
    if by is not None and by not in columns:
        allowed = " or ".join(columns) or "nothing (it has neither labels nor natural ids)"
        yield (
            f"partitioner={choices['partitioner']} partitions by {by}, which dataset={choices['dataset']} does not "
            f"have; it can be partitioned by {allowed}; try "
            + (f"partitioner.partition_by={columns[0]}" if columns else "partitioner=iid")
        )
    num_partitions = partitioner.get("num_partitions")
    if "num_partitions" in partitioner and num_partitions is None:
        yield (
            f"federation.num_supernodes=null leaves the number to the partitioner, but "
            f"partitioner={choices['partitioner']} needs one; try federation.num_supernodes=10"
        )
    elif num_partitions is not None and num_supernodes is not None and num_supernodes > num_partitions:
        yield (
            f"federation.num_supernodes={num_supernodes} is more than the {num_partitions} partitions made; "
            f"try federation.num_supernodes={num_partitions}"
        )
    sizes = partitioner.get("partition_sizes")
    if sizes and num_supernodes is not None and num_supernodes > len(sizes):
        yield (
            f"federation.num_supernodes={num_supernodes} is more than the {len(sizes)} partitions in "
            f"partitioner.partition_sizes; try federation.num_supernodes=null"
        )
    per_partition = partitioner.get("num_classes_per_partition", 0)
    if per_partition > declares["num_classes"]:
        yield (
            f"partitioner.num_classes_per_partition={per_partition} is more than the {declares['num_classes']} classes "
            f"of dataset={choices['dataset']}; try partitioner.num_classes_per_partition=2"
        )


def _check_cohorts(config: Config) -> Iterator[str]:
    """Flower's strategies wait for ever for clients that do not exist."""
    federation, server = config.federation, config.strategy["server"]
    if federation.num_supernodes is None:
        return
    for phase in ("train", "evaluate"):
        cohort = cohort_size(federation.num_supernodes, getattr(federation, f"fraction_{phase}"))
        for key in (f"min_{phase}_nodes", "min_available_nodes"):
            if server.get(key, 0) > cohort:
                yield (
                    f"strategy.server.{key}={server[key]} is more than the {cohort} clients of a round "
                    f"(federation.fraction_{phase} of federation.num_supernodes={federation.num_supernodes}); "
                    f"try strategy.server.{key}={cohort}"
                )


def _values_at(node: Any, key: str) -> Iterator[Any]:
    """Yield the value at a dotted key, if there is one."""
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return
        node = node[name]
    yield node


def shown(value: Any) -> str:
    """Return a value as one would type it."""
    return value or "''" if isinstance(value, str) else json.dumps(value)
