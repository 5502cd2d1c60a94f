"""The allowed values of each key, and an example."""

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """The allowed values at one dotted key, in code and in words, and an example to type instead."""

    key: str
    holds: Callable[[Any], bool]
    allowed: str
    example: str

    def refusal(self, value: Any) -> str:
        """Return the line that rejects a value."""
        hint = shlex.quote(f"{self.key}={self.example}")
        return f"{self.key} must be {self.allowed}, got {as_written(value)}; try {hint}"


def as_written(value: Any) -> str:
    """Return a value as it would be typed."""
    return value or "''" if isinstance(value, str) else json.dumps(value)


def _integer(low: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and v >= low


def _up_to(high: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and 1 <= v <= high


def _at_most(high: int) -> Callable[[Any], bool]:
    """Return a check that a number, or each number of a list, is at most ``high``; other rules check the type."""
    return lambda v: all(type(one) not in (int, float) or one <= high for one in (v if isinstance(v, list) else [v]))


def _real(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda v: type(v) in (int, float) and holds(v)


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or holds(v)


def _or_empty(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v in (None, "") or holds(v)


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and bool(v) and all(map(holds, v))


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: _each(holds)(v) if isinstance(v, list) else type(v) is not bool


def _one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and v in allowed


_MAX = 1e38  # within float32

_positive = _real(lambda v: 0 < v < _MAX)
_not_negative = _real(lambda v: 0 <= v < _MAX)


def _boolean(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _some_text(value: Any) -> bool:
    return _text(value) and value != ""


def _name(max_characters: int, without: str = "") -> Callable[[Any], bool]:
    """Return a check that a value is a name: printable text or a number, of at most ``max_characters``."""

    def holds(value: Any) -> bool:
        text = str(value) if type(value) in (str, int, float) else ""
        return 1 <= len(text) <= max_characters and text.isprintable() and not {*without} & {*text}

    return holds


def _tags(value: Any) -> bool:
    """Return whether a value is a list of W&B tags, or a text of tags with commas between them, maybe empty."""
    tags = [tag for tag in value.split(",") if tag] if _text(value) else value
    return isinstance(tags, list) and all(map(_name(64), tags))


def _address(value: Any) -> bool:
    host, _, port = value.rpartition(":") if _text(value) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _device(value: Any) -> bool:
    kind, colon, index = value.partition(":") if _text(value) else ("", "", "")
    return value == "cpu" or (kind == "cuda" and (not colon or index.isdecimal()))


def _list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


INPUTS = ("image", "vector", "tokens")

# The cohort of a round is sampled before the strategy is called, so the strategy must neither sample nor wait. This
# includes a strategy inside another one.
_OF_COHORTS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("fraction_train", _real(lambda v: v == 1), "1.0 (see federation.fraction_train)"),
    ("fraction_evaluate", _real(lambda v: v == 1), "1.0 (see federation.fraction_evaluate)"),
    ("min_train_nodes", _up_to(1), "1 (see federation.fraction_train and sampling)"),
    ("min_evaluate_nodes", _up_to(1), "1 (see federation.fraction_evaluate)"),
    ("min_available_nodes", _up_to(1), "1 (see federation.fraction_train and sampling)"),
)

# A rule applies if its key exists. These apply to every experiment, with any options.
SHARED = (
    Rule("seed", _integer(0), "an integer >= 0", "0"),
    Rule("name", _or_empty(_name(128)), "a text of 1 to 128 characters, or null", "lr-0.1"),
    Rule("dtype", _one_of("float32", "float64"), "float32 or float64", "float32"),
    Rule("precision", _one_of("full", "bf16", "tf32"), "full, bf16 or tf32", "bf16"),
    Rule(
        "memory_format",
        _one_of("auto", "contiguous", "channels_last"),
        "auto, contiguous or channels_last",
        "channels_last",
    ),
    Rule("cache_dir", _some_text, "a folder", "CACHE_DIR"),
    Rule("federation.num_supernodes", _or_null(_integer(1)), "an integer >= 1, or null", "10"),
    Rule("federation.num_rounds", _integer(1), "an integer >= 1", "20"),
    Rule("federation.fraction_train", _real(lambda v: 0 < v <= 1), "in (0, 1]", "0.1"),
    Rule("federation.fraction_evaluate", _real(lambda v: 0 <= v <= 1), "in [0, 1]", "1.0"),
    Rule("federation.evaluate_initial", _boolean, "true or false", "true"),
    Rule("federation.evaluate_train", _boolean, "true or false", "false"),
    Rule("federation.evaluate_every", _integer(1), "an integer >= 1", "1"),
    Rule("federation.target_accuracy", _or_null(_real(lambda v: 0 < v <= 1)), "in (0, 1], or null", "0.97"),
    Rule("federation.max_failures", _integer(0), "an integer >= 0", "1"),
    Rule("federation.nonfinite", _one_of("stop", "drop", "keep"), "stop, drop or keep", "drop"),
    Rule("resume", _or_null(_some_text), "the directory of a run, or null", "RUN_DIR"),
    Rule("clients_table", _boolean, "true or false", "true"),
    Rule("checkpoint.every", lambda v: v == "auto" or _integer(0)(v), "an integer >= 0, or auto", "10"),
    Rule("checkpoint.keep", _integer(1), "an integer >= 1", "2"),
    Rule("checkpoint.best", _or_null(_some_text), "a column of metrics.jsonl, or null", "clients/accuracy_mean"),
    Rule("local.epochs", _or_null(_integer(1)), "an integer >= 1, or null", "5"),
    Rule("local.steps", _or_null(_integer(1)), "an integer >= 1, or null", "10"),
    Rule("local.batch_size", _integer(0), "an integer >= 0 (0: the full batch)", "10"),
    Rule("local.keep_optimizer_state", _boolean, "true or false", "false"),
    Rule("validation.fraction", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.2"),
    Rule("validation.seed", _or_null(_integer(0)), "an integer >= 0, or null", "42"),
    Rule("dataset.declares.input", _one_of(*INPUTS), "image, vector or tokens", "image"),
    Rule("dataset.declares.input_shape", _each(_integer(1)), "a list of integers >= 1", "[1,28,28]"),
    Rule("dataset.declares.num_classes", _integer(1), "an integer >= 1", "10"),
    Rule(
        "dataset.declares.columns",
        lambda v: isinstance(v, list) and all(map(_one_of("label", "natural_id"), v)),
        "a list of label and natural_id",
        "[label]",
    ),
    Rule("partitioner.seed", _or_null(_integer(0)), "an integer >= 0, or null", "42"),
    Rule("partitioner.path", _or_null(_some_text), "the path of a file", "rows.json"),
    Rule("partitioner.num_partitions", _or_null(_integer(1)), "an integer >= 1", "10"),
    Rule(
        "model.requires", lambda v: isinstance(v, dict), "a section of input, min_side, usual_side", "{input:[image]}"
    ),
    Rule("model.requires.input", _each(_one_of(*INPUTS)), "a list of image, vector and tokens", "[image]"),
    Rule("model.requires.min_side", _integer(1), "an integer >= 1", "16"),
    Rule("model.requires.usual_side", _integer(1), "an integer >= 1", "32"),
    Rule("optimizer.lr", _positive, "> 0 and below 1e38", "0.1"),
    *(Rule(f"strategy.server.{key}", holds, allowed, "1") for key, holds, allowed in _OF_COHORTS),
    Rule("strategy.weighted_by", _one_of("num-examples", "uniform"), "num-examples or uniform", "num-examples"),
    Rule(
        "strategy.buffers",
        _one_of("average", "median", "rule", "local", "drop"),
        "average, median, rule, local or drop",
        "average",
    ),
    Rule("strategy.pooled", _boolean, "true or false", "false"),
    Rule("strategy.trim", _real(lambda v: 0 <= v < 0.5), "in [0, 0.5)", "0.2"),
    Rule(
        "strategy.min_cohort",
        lambda v: _each(_integer(0))(v) and len(v) == 2,
        "two integers >= 0 (a and b of a * num_malicious_nodes + b)",
        "[2,3]",
    ),
    Rule("strategy.server.arrayrecord_key", _one_of("arrays"), "arrays", "arrays"),
    Rule("strategy.server.configrecord_key", _one_of("config"), "config", "config"),
    Rule("strategy.server.num_malicious_nodes", _integer(0), "an integer >= 0", "1"),
    Rule("strategy.server.num_nodes_to_select", _integer(1), "an integer >= 1", "3"),
    Rule("hardware.declares", lambda v: isinstance(v, dict), "a section of runs", "{runs:client_app}"),
    Rule("hardware.declares.runs", _one_of("client_app", "experiment"), "client_app or experiment", "client_app"),
    Rule("hardware.device", _device, "cpu, cuda or cuda:N", "cuda"),
)

# These apply to options of ``conf/`` that have the key, and to options that include them: the `alpha` of a user's own
# option may have another range.
OF_OPTIONS = (
    Rule("dataset.seed", _integer(0), "an integer >= 0", "0"),
    Rule("dataset.alpha", _not_negative, ">= 0", "1.0"),
    Rule("dataset.beta", _not_negative, ">= 0", "1.0"),
    Rule("dataset.iid", _boolean, "true or false", "false"),
    Rule("dataset.root", _or_null(_some_text), "a folder, or null", "DIR"),
    Rule("dataset.path", _or_null(_some_text), "a folder, or null", "DIR"),
    Rule("dataset.name", _some_text, "a dataset of the Hugging Face Hub", "ylecun/mnist"),
    Rule("dataset.revision", _or_null(_some_text), "a commit, or null", "main"),
    Rule("dataset.image", _some_text, "the name of a column", "image"),
    Rule("dataset.label", _some_text, "the name of a column", "label"),
    Rule("dataset.natural_id", _or_null(_some_text), "the name of a column, or null", "writer_id"),
    Rule("dataset.raw", _text, "a folder below dataset.root", "MNIST/raw"),
    Rule("dataset.train_split", _some_text, "the name of a split", "train"),
    Rule("dataset.test_split", _or_null(_some_text), "the name of a split, or null", "test"),
    Rule("dataset.subset", _or_null(_some_text), "the name of a configuration, or null", "null"),
    Rule("dataset.mode", _or_null(_one_of("L", "RGB")), "L, RGB or null", "RGB"),
    # A list has one entry per channel, for pixels scaled to [0, 1]; other types are for a user's own dataset.
    Rule("dataset.mean", _list_of(_real(lambda v: 0 <= v <= 1)), "a list of numbers in [0, 1]", "[0.1307]"),
    Rule("dataset.std", _list_of(_real(lambda v: 0 < v <= 1)), "a list of numbers in (0, 1]", "[0.3081]"),
    Rule("dataset.num_devices", _integer(1), "an integer >= 1", "30"),
    Rule("dataset.test_fraction", _real(lambda v: 0 < v < 1), "in (0, 1)", "0.1"),
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
    Rule("partitioner.distribution_array.sigma", _not_negative, ">= 0 and below 1e38", "2.0"),
    Rule("partitioner.distribution_array.num_shares", _integer(1), "an integer >= 1", "10"),
    Rule("partitioner.distribution_array.seed", _integer(0), "an integer >= 0", "0"),
    Rule("partitioner.group_size", _integer(1), "an integer >= 1", "2"),
    Rule("model.widths", _each(_integer(1)), "a list of integers >= 1", "[200,200]"),
    Rule("model.norm", _one_of("group", "batch"), "group or batch", "group"),
    Rule("model.groups", _integer(1), "an integer >= 1", "2"),
    Rule("optimizer.momentum", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("optimizer.nesterov", _boolean, "true or false", "false"),
    Rule("optimizer.weight_decay", _not_negative, ">= 0 and below 1e38", "0.0005"),
    Rule(
        "optimizer.betas",
        lambda v: _each(_real(lambda beta: 0 <= beta < 1))(v) and len(v) == 2,
        "a list of two numbers in [0, 1)",
        "[0.9,0.999]",
    ),
    Rule("optimizer.lr_decay", _not_negative, ">= 0 and below 1e38", "0.0"),
    Rule("optimizer.eps", _positive, "> 0", "1e-8"),
    Rule("optimizer.schedule.step_size", _integer(1), "an integer >= 1", "10"),
    Rule("optimizer.schedule.gamma", _positive, "> 0 and below 1e38", "0.5"),
    Rule("optimizer.schedule.min_lr", _not_negative, ">= 0 and below 1e38", "0.0"),
    *(
        Rule(f"{group}.partition_ids", _each(_integer(0)), "a list of integers >= 0", "[0,1]")
        for group in ("sampling", "evaluate_sampling")
    ),
    *(
        Rule(f"availability.{key}", _real(lambda v: 0 <= v <= 1), "in [0, 1]", "0.5")
        for key in ("probability", "fraction")
    ),
    Rule("availability.epochs", _or_null(_integer(1)), "an integer >= 1, or null", "5"),
    Rule("transform.crop.padding", _integer(0), "an integer >= 0", "4"),
    Rule("transform.flip.probability", _real(lambda v: 0 <= v <= 1), "in [0, 1]", "0.5"),
    Rule("transform.mixup.alpha", _positive, "> 0 and below 1e38", "0.2"),
    *(
        Rule(f"transform.resize.{side}", _up_to(4096), "an integer from 1 to 4096", "32")
        for side in ("height", "width")
    ),
    Rule("channel.clip.max_norm", _positive, "> 0 and below 1e38", "1.0"),
    Rule("channel.topk.share", _real(lambda v: 0 < v <= 1), "in (0, 1]", "0.1"),
    Rule("channel.noise.std", _not_negative, ">= 0 and below 1e38", "0.01"),
    Rule("channel.quantise.bits", lambda v: type(v) is int and v in (1, 2, 4, 8), "1, 2, 4 or 8", "8"),
    Rule("strategy.server.server_learning_rate", _positive, "> 0 and below 1e38", "1.0"),
    Rule("strategy.server.server_momentum", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("strategy.server.proximal_mu", _not_negative, ">= 0 and below 1e38", "0.1"),
    Rule("strategy.server.eta", _positive, "> 0 and below 1e38", "0.1"),
    Rule("strategy.server.beta_1", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.9"),
    Rule("strategy.server.beta_2", _real(lambda v: 0 <= v < 1), "in [0, 1)", "0.99"),
    Rule("strategy.server.tau", _positive, "> 0 and below 1e38", "0.001"),
    Rule("strategy.server.beta", _real(lambda v: 0 <= v < 0.5), "in [0, 0.5)", "0.2"),
    Rule("strategy.server.q", _not_negative, ">= 0 and below 1e38", "0.1"),
    Rule("strategy.server.client_learning_rate", _positive, "> 0 and below 1e38", "0.1"),
    Rule("strategy.server.alpha", _positive, "> 0 and below 1e38", "0.01"),
    Rule("strategy.client.option", _one_of("I", "II"), "I or II", "II"),
    Rule("strategy.client.mu", _not_negative, ">= 0 and below 1e38", "1.0"),
    Rule("strategy.client.temperature", _positive, "> 0 and below 1e38", "0.5"),
    Rule("strategy.client.lam", _not_negative, ">= 0 and below 1e38", "1.0"),
    Rule("strategy.client.head", _or_null(_list_of_text), "a list of the model's modules, or null", "[fc3]"),
    Rule("strategy.client.head_epochs", _or_null(_integer(1)), "an integer >= 1, or null", "10"),
    Rule("strategy.client.finetune_epochs", _or_null(_integer(1)), "an integer >= 1, or null", "5"),
    Rule("strategy.client.personal_epochs", _or_null(_integer(1)), "an integer >= 1, or null", "5"),
    Rule("hardware.chunk", lambda v: v == "auto" or _up_to(4096)(v), "an integer from 1 to 4096, or auto", "10"),
    Rule("hardware.workers", lambda v: v == "auto" or _up_to(1024)(v), "an integer from 1 to 1024, or auto", "2"),
    Rule("hardware.threads", _up_to(1024), "an integer from 1 to 1024", "1"),
    Rule("hardware.num_cpus", _positive, "> 0", "1"),
    Rule("hardware.num_gpus", _not_negative, ">= 0", "0.5"),
    Rule("hardware.compile", lambda v: v == "auto" or v is False, "auto or false", "false"),
    Rule(
        "hardware.address",
        lambda v: v in (None, "auto") or _address(v),
        "HOST:PORT or, of a Ray cluster of this machine, auto; or null",
        "127.0.0.1:8000",
    ),
    Rule("hardware.root_certificates", _or_null(_some_text), "a PEM file, or null", "ca.pem"),
    Rule("hardware.secure", _boolean, "true or false", "false"),
    Rule("hardware.timeout_s", _positive, "> 0", "300"),
    Rule(
        "tracker.mode",
        _one_of("auto", "online", "offline", "disabled"),
        "auto, online, offline or disabled",
        "offline",
    ),
    # Weights & Biases rejects a run, and with it the whole record, for any of these.
    Rule("tracker.project", _name(128, r"/\#?%:"), r"a text of 1 to 128 characters without / \ # ? % :", "fedresearch"),
    Rule("tracker.entity", _or_empty(_name(64, r"/\#?%:")), r"a user or team without / \ # ? % :, or null", "my-team"),
    Rule("tracker.tags", _or_null(_tags), "a list of tags of 1 to 64 characters each", "[paper,v2]"),
    Rule("tracker.group", _or_empty(_name(128)), "a text of 1 to 128 characters, or null", "ablation"),
    Rule("tracker.job_type", _or_empty(_name(64)), "a text of 1 to 64 characters, or null", "train"),
    Rule("tracker.log_model", _boolean, "true or false", "false"),
    Rule("tracker.log_clients", _boolean, "true or false", "false"),
)

# Sizes beyond any machine, which would otherwise fail only after minutes, or when memory runs out.
_MILLION = 1_000_000
_INT64, _UINT32 = 2**63 - 1, 2**32 - 1  # the largest seeds of generators
_LARGEST = tuple(
    Rule(key, _at_most(most), f"at most {most:,}", example)
    for key, most, example in (
        ("federation.num_supernodes", _MILLION, "10"),
        ("federation.num_rounds", _MILLION, "20"),
        ("local.epochs", _MILLION, "5"),
        ("local.steps", _MILLION, "10"),
        ("dataset.num_devices", 10_000, "30"),
        ("dataset.declares.input_shape", _MILLION, "[1,28,28]"),
        ("dataset.declares.num_classes", _MILLION, "10"),
        ("partitioner.num_shards_per_partition", _MILLION, "2"),
        ("partitioner.num_unique_labels_per_partition", _MILLION, "2"),
        ("partitioner.preassigned_num_samples_per_label", _MILLION, "5"),
        ("partitioner.group_size", _MILLION, "2"),
        ("model.widths", _MILLION, "[200,200]"),
        ("strategy.client.head_epochs", _MILLION, "10"),
        ("strategy.client.finetune_epochs", _MILLION, "5"),
        ("strategy.client.personal_epochs", _MILLION, "5"),
        ("seed", _INT64, "0"),
        ("partitioner.seed", _INT64, "42"),
        ("validation.seed", _INT64, "42"),
        ("dataset.seed", _UINT32, "0"),
    )
)

RULES = (*SHARED, *OF_OPTIONS, *_LARGEST)


def rules_of_wrapped(server: Any, key: str = "strategy.server") -> Iterator[Rule]:
    """Yield the rules for the strategies inside the server's strategy."""
    for name, section in server.items() if isinstance(server, dict) else ():
        if isinstance(section, dict) and "_target_" in section:
            yield from (Rule(f"{key}.{name}.{of}", holds, allowed, "1") for of, holds, allowed in _OF_COHORTS)
            yield from rules_of_wrapped(section, f"{key}.{name}")
