"""Checks the sections of the groups, with any options: that they can be built, and that each key is read."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from fedresearch.config.schema import GROUPS, LISTS

# The nodes that are built, by dotted key; those in the groups of LISTS are built too. The other keys of a node are
# arguments of what it builds, which rejects unknown ones.
BUILT = (
    "dataset",
    "partitioner",
    "model",
    "optimizer",
    "optimizer.schedule",
    "strategy.server",
    "strategy.client",
    "sampling",
    "evaluate_sampling",
    "availability",
    "hardware",
    "tracker",
)
# The keys that every option must have.
NEEDED = (
    "dataset.declares.input",
    "dataset.declares.input_shape",
    "dataset.declares.num_classes",
    "dataset.declares.columns",
    "optimizer.lr",
    "strategy.weighted_by",
    "strategy.buffers",
    "strategy.pooled",
)
# Options declare facts for the checks in these keys, which are not arguments of what is built.
DECLARATIONS = ("declares", "requires")
# All such facts. Nobody types them, so they are left out where keys are listed.
FACTS = (
    *(f"{group}.declares" for group in ("dataset", "partitioner", "model", "optimizer", "strategy", "hardware")),
    *("model.requires", "strategy.min_cohort", "strategy.trim"),
)
# The sections that are not built, and the keys that are read: nothing would read another key.
READ = {
    "dataset.declares": ("label", "input", "input_shape", "num_classes", "columns"),
    "model.requires": ("input", "min_side", "usual_side"),
    "hardware.declares": ("runs",),
    "strategy": ("declares", "weighted_by", "buffers", "pooled", "min_cohort", "trim", "server", "client"),
    "strategy.declares": ("label", "metrics"),
    "partitioner.declares": ("label",),
    "model.declares": ("label",),
    "optimizer.declares": ("label",),
}
_FROM_PARTS = {"strategy": ", as `defaults: [_cohort, _self_]` does"}
# Hydra's keys that the run sets itself, or that make something else from a section.
_NOT_OURS = {"_partial_", "_args_", "_convert_"}


def check_sections(plain: Mapping[str, Any], choices: Mapping[str, str | None]) -> list[str]:
    """Return a line for each invalid option, section that cannot be built, missing key and unread key."""
    lines = [*_options(choices)] or [*_built(plain, choices)]
    lines += [
        f"{key} is missing; its option's YAML must give it{_FROM_PARTS.get(key.partition('.')[0], '')}"
        for key in NEEDED
        if not lines and not [*values_at(plain, key)]
    ]
    return [*lines, *_unread(plain)]


def values_at(node: Any, key: str) -> Iterator[Any]:
    """Yield the value at a dotted key, if it exists."""
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return
        node = node[name]
    yield node


def _options(choices: Mapping[str, str | None]) -> Iterator[str]:
    for group in [one for one in dict.fromkeys([*GROUPS, *choices]) if one not in LISTS]:
        option = choices.get(group)
        if not isinstance(option, str) and (option is not None or group in GROUPS):
            yield f"{group} must be one option, got several or none; see --help, and write {group}=OPTION"
        elif isinstance(option, str) and not is_name(option):
            stem = PurePosixPath(option).stem
            hint = f"try {group}={stem}" if is_name(stem) else "see --help for the options"
            yield (
                f"{group} must be the name of an option, neither a path nor a part of options (_NAME), got {option}; "
                f"{hint}"
            )


def is_name(option: str) -> bool:
    """Return whether a text is the name of an option, maybe in a subfolder of its group."""
    names = option.split("/")
    return all(name and name[0] not in "._" for name in names) and "\\" not in option and not option.endswith(".yaml")


def _built(plain: Mapping[str, Any], choices: Mapping[str, str | None]) -> Iterator[str]:
    for group in LISTS:
        for name, node in plain[group].items() if isinstance(plain[group], dict) else [("", None)]:
            if not _is_built(node):
                yield (
                    f"{group} must have a section with a _target_ for each option, got {group}{name and f'.{name}'}; "
                    f"the YAML of an option NAME begins with NAME: and has its keys below"
                )
    for key in BUILT:
        node = next(values_at(plain, key), None)
        if not _is_built(node):
            group = "schedule" if key == "optimizer.schedule" else key.partition(".")[0]
            if group == "strategy" and not node:
                yield (
                    f"strategy={choices.get(group)}: {key} is missing; try defaults: [fedavg, _self_] in the option's "
                    f"YAML, which then has what it does not set from FedAvg"
                )
                continue
            yield (
                f"{group}={choices.get(group)}: {key} must be a section with a _target_, without _partial_, _args_ and "
                f"_convert_; " + (f"try {group}={node}" if isinstance(node, str) else "see --help for options")
            )


def _is_built(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("_target_"), str) and not _NOT_OURS & node.keys()


def _unread(plain: Mapping[str, Any]) -> Iterator[str]:
    for section, read in READ.items():
        for node in values_at(plain, section):
            for name in node if isinstance(node, dict) else ():
                if name not in read:
                    close = get_close_matches(str(name), read, n=1)
                    listed = ", ".join(key for key in read if f"{section}.{key}" not in FACTS)
                    hint = f"try {section}.{close[0]}" if close else f"{section} has {listed}"
                    built = "; strategy.server and strategy.client take arguments" * (section == "strategy")
                    yield f"unknown key {section}.{name}, which nothing reads; {hint}{built}"
