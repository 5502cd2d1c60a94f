"""Checks a composed config: each value by its rule, and values together."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from fedresearch.config.cohorts import check_cohort
from fedresearch.config.input_shape import check_shapes, shapes
from fedresearch.config.metrics import check_metrics
from fedresearch.config.rules import RULES, SHARED, as_written, rules_of_wrapped
from fedresearch.config.schema import Config, runs_elsewhere
from fedresearch.config.sections import check_sections, values_at
from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError

_MAX_SUPERNODES = 1000  # on one machine; each takes some 100 MB


def check(
    config: Config, choices: Mapping[str, str | None], ours: Collection[str], following: Collection[str] = ()
) -> None:
    """Check a config.

    Parameters
    ----------
    config : Config
        The experiment.
    choices : dict
        Group to chosen option, for the messages.
    ours : collection of str
        Keys that the options have from ``conf/``: only these have the ranges of its options.
    following : collection of str
        Keys that take their values from others: the others are reported instead.

    Raises
    ------
    InputError
        With one line for each mistake.
    """
    plain = asdict(config)
    held = {*(rule.key for rule in SHARED), *ours}
    rules = [
        *(rule for rule in RULES if rule.key in held),
        *rules_of_wrapped(next(values_at(plain, "strategy.server"), None)),
    ]
    lines = check_sections(plain, choices)
    broken = [(rule, value) for rule in rules for value in values_at(plain, rule.key) if not rule.holds(value)]
    broken = [(rule, value) for rule, value in broken if rule.key not in following] or broken
    lines += [rule.refusal(value) for rule, value in broken]
    refused = {rule.key for rule, _ in broken}
    lines += [
        f"{key} must be finite, got {as_written(value)}"
        for key, value in leaves(plain)
        if key not in refused and not _is_finite(value)
    ]
    # The checks of values together need values that are possible alone.
    lines = lines or [*_cross_check(config, choices, {key: value for key, value in leaves(plain) if key in ours})]
    if lines:
        raise InputError(*lines)


def _cross_check(config: Config, choices: Mapping[str, str | None], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for values that do not fit together. An option's arguments count only if they are in ``ours``."""
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
    if federation.target_accuracy is not None:
        yield from _check_target(config, choices)
    if config.precision != "full":
        yield from _check_precision(config, choices)
    yield from _check_partitions(config, choices, ours)
    yield from check_cohort(config, ours.get("sampling.partition_ids"))
    weighted_by = config.strategy["weighted_by"]
    if config.strategy["server"].get("weighted_by_key", weighted_by) != weighted_by:
        yield (
            f"strategy.server.weighted_by_key={config.strategy['server']['weighted_by_key']} differs "
            f"from strategy.weighted_by={weighted_by}; try strategy.weighted_by={weighted_by} alone"
        )
    yield from _check_inputs(config, choices, ours)
    yield from check_metrics(config)
    if runs_elsewhere(config):
        yield from _check_superlink(config)
    if ours.get("optimizer.nesterov") and not ours.get("optimizer.momentum"):
        yield "optimizer.nesterov=true needs momentum, got optimizer.momentum=0; try optimizer.momentum=0.9"
    key, lr = "optimizer.schedule.min_lr", config.optimizer["lr"]
    if (min_lr := ours.get(key, 0)) > lr:
        yield f"{key} must be at most optimizer.lr={lr}, got {min_lr}; try {key}=0"


def _check_inputs(config: Config, choices: Mapping[str, str | None], ours: Mapping[str, Any]) -> Iterator[str]:
    """Reject transforms and a model that do not fit the dataset's inputs, or the transformed ones."""
    declares, requires = config.dataset["declares"], config.model.get("requires", {})
    is_image = declares["input"] == "image"
    if is_image and len(declares["input_shape"]) != 3:
        yield (
            "dataset.declares.input_shape of images must be channels, height and width, "
            f"got {declares['input_shape']}; try dataset.declares.input_shape=[1,28,28]"
        )
        return
    lines = [
        f"{line}; leave it out, or try another dataset"
        for name, node in config.transform.items()
        if (line := _wrong_input(f"transform={name}", node.get("requires", {}), config, choices))
    ] or [*check_shapes(config)]
    yield from lines
    of_samples = [declares["input_shape"]] if lines else shapes(config)
    if line := _wrong_input(f"model={choices['model']}", requires, config, choices):
        yield f"{line}; try model=mlp or another dataset"
    elif "min_side" in requires and min(of_samples[-1][1:]) < requires["min_side"]:
        side, (_, height, width) = requires["min_side"], of_samples[-1]
        yield (
            f"model={choices['model']} needs images of at least {side} x {side} pixels, got dataset="
            f"{choices['dataset']} with {height} x {width}; try transform=resize, or model=mlp"
        )
    key = "transform.crop.padding"
    for name, shape in zip(config.transform, of_samples, strict=False):
        if name == "crop" and is_image and ours.get(key, 0) >= (side := min(shape[-2:])):
            yield f"{key} must be below the images' side of {side} pixels, got {ours[key]}; try {key}={side // 8}"


def _wrong_input(option: str, requires: Mapping[str, Any], config: Config, choices: Mapping[str, str | None]) -> str:
    """Return that an option requires another input than the dataset's, or "" if it does not."""
    given = config.dataset["declares"]["input"]
    allowed = requires.get("input", [given])
    if given in allowed:
        return ""
    return f"{option} needs {' or '.join(allowed)} input, got dataset={choices['dataset']}, whose input is {given}"


def _check_precision(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    key, device = f"precision={config.precision}", config.hardware.get("device")
    if config.dtype != "float32":
        yield f"{key} needs dtype=float32, got dtype={config.dtype}; try precision=full"
    elif config.precision == "tf32" and device in (None, "cpu"):
        got = f"hardware.device={device}" if device else f"hardware={choices['hardware']}"
        yield f"{key} needs a GPU on which this process trains, got {got}; try hardware=gpu"


def _check_target(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Reject a target accuracy for a dataset without classes."""
    target = f"federation.target_accuracy={config.federation.target_accuracy}"
    if config.dataset["declares"]["num_classes"] == 1:
        yield f"{target} needs classes, and dataset={choices['dataset']} has none; try federation.target_accuracy=null"
    elif "accuracy" not in config.metrics:
        yield f"{target} needs accuracy among the metrics, got metrics={choices['metrics']}; try metrics=accuracy"


def _check_superlink(config: Config) -> Iterator[str]:
    hardware = config.hardware
    if config.federation.num_supernodes is None:
        yield (
            "hardware=superlink needs the number of SuperNodes to wait for, got federation.num_supernodes=null; "
            "try federation.num_supernodes=10"
        )
    elif hardware["address"] is None and config.federation.num_supernodes > _MAX_SUPERNODES:
        yield (
            f"hardware=superlink starts one process per client, at most {_MAX_SUPERNODES:,}, got "
            f"federation.num_supernodes={config.federation.num_supernodes}; try hardware=workers"
        )
    if hardware["address"] == "auto":
        yield "hardware.address=auto is for hardware=ray; try hardware.address=127.0.0.1:8000"
    if hardware["address"] is not None and hardware["secure"]:
        yield (
            f"hardware.secure=true is for a SuperLink that is started here, got hardware.address="
            f"{hardware['address']}; try hardware.root_certificates=ca.pem for one with TLS"
        )
    if hardware["address"] is None and hardware["root_certificates"] is not None:
        yield (
            f"hardware.root_certificates={hardware['root_certificates']} needs a SuperLink at hardware.address, got "
            "null; try hardware.secure=true"
        )


def _check_partitions(config: Config, choices: Mapping[str, str | None], ours: Mapping[str, Any]) -> Iterator[str]:
    partitioner, num_supernodes = config.partitioner, config.federation.num_supernodes
    declares = config.dataset["declares"]
    columns = declares["columns"]
    by = partitioner.get("partition_by")
    if by is not None and by not in columns:
        allowed = " or ".join(columns) or "neither labels nor natural ids"
        yield (
            f"partitioner={choices['partitioner']} partitions by {by}, which dataset={choices['dataset']} does not "
            f"have; it has {allowed}; try "
            + ("partitioner.partition_by=label" if "label" in columns and by != "natural_id" else "partitioner=iid")
        )
    num_partitions = partitioner.get("num_partitions")
    if "num_partitions" in partitioner and num_partitions is None:
        yield (
            f"federation.num_supernodes=null lets the partitioner choose the number, but "
            f"partitioner={choices['partitioner']} needs one; try federation.num_supernodes=10"
        )
    elif num_partitions is not None and num_supernodes is not None and num_supernodes > num_partitions:
        yield (
            f"federation.num_supernodes={num_supernodes} is more than the {num_partitions} partitions made; "
            f"try federation.num_supernodes={num_partitions}"
        )
    sizes = ours.get("partitioner.partition_sizes")
    if sizes and num_supernodes is not None and num_supernodes > len(sizes):
        yield (
            f"federation.num_supernodes={num_supernodes} is more than the {len(sizes)} partitions in "
            f"partitioner.partition_sizes; try federation.num_supernodes=null"
        )
    for key in ("partitioner.num_classes_per_partition", "partitioner.num_unique_labels_per_partition"):
        # The number of natural ids is known only with the data.
        if by == "label" and ours.get(key, 0) > declares["num_classes"]:
            yield (
                f"{key}={ours[key]} is more than the {declares['num_classes']} classes of "
                f"dataset={choices['dataset']}; try {key}=2"
            )


def _is_finite(value: object) -> bool:
    if isinstance(value, list | dict):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
