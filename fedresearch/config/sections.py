"""What the sections of the groups must be, whatever their options, and which of their keys anybody reads."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from fedresearch.config.schema import GROUPS

# What is built from the config, by the dotted key of its node. A node's other keys are arguments of what it builds,
# which refuses those that it does not have.
BUILT = (
    "dataset",
    "partitioner",
    "model",
    "optimizer",
    "optimizer.schedule",
    "strategy.server",
    "strategy.client",
    "sampling",
    "hardware",
    "tracker",
)
# What the rest relies on, whatever the option.
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
# What options declare in these keys is for the checks, and no argument of what is built.
DECLARATIONS = ("declares", "requires")
# The sections that nothing is built from: any other key in them would be read by nobody.
READ = {
    "dataset.declares": ("input", "input_shape", "num_classes", "columns"),
    "model.requires": ("input", "min_side", "usual_side"),
    "hardware.declares": ("runs",),
    "strategy": ("weighted_by", "buffers", "pooled", "min_cohort", "trim", "server", "client"),
}
_FROM_PARTS = {"strategy": ", as `defaults: [_cohort, _self_]` does"}
# Hydra's words that the run gives, or that make something else than an object of a section.
_NOT_OURS = {"_partial_", "_args_", "_convert_"}


def check_sections(plain: Mapping[str, Any], choices: Mapping[str, str | None]) -> list[str]:
    """Return a line for each option that is none, section that cannot be built, and key that is missing or unread."""
    lines = [*_options(choices)] or [*_built(plain, choices)]
    lines += [
        f"{key} is missing; its option's YAML must give it{_FROM_PARTS.get(key.partition('.')[0], '')}"
        for key in NEEDED
        if not lines and not [*values_at(plain, key)]
    ]
    return [*lines, *_unread(plain)]


def values_at(node: Any, key: str) -> Iterator[Any]:
    """Yield the value at a dotted key, if there is one."""
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return
        node = node[name]
    yield node


def _options(choices: Mapping[str, str | None]) -> Iterator[str]:
    for group in dict.fromkeys([*GROUPS, *choices]):
        option = choices.get(group)
        if not isinstance(option, str) and (option is not None or group in GROUPS):
            yield f"{group} takes one option, got several or none; see --help, and write {group}=OPTION"
        elif isinstance(option, str) and not _is_name(option):
            stem = PurePosixPath(option).stem
            hint = f"try {group}={stem}" if _is_name(stem) else "see --help for the options"
            yield (
                f"{group} must be the name of an option, neither a path nor a part of options (_NAME), got {option}; "
                f"{hint}"
            )


def _is_name(option: str) -> bool:
    names = option.split("/")  # an option may be in a folder of its group's
    return all(name and name[0] not in "._" for name in names) and "\\" not in option and not option.endswith(".yaml")


def _built(plain: Mapping[str, Any], choices: Mapping[str, str | None]) -> Iterator[str]:
    for key in BUILT:
        node = next(values_at(plain, key), None)
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str) or _NOT_OURS & node.keys():
            group = "schedule" if key == "optimizer.schedule" else key.partition(".")[0]
            yield (
                f"{group}={choices.get(group)}: {key} must be a section with a _target_, without _partial_, _args_ and "
                f"_convert_; " + (f"try {group}={node}" if isinstance(node, str) else "see --help for options")
            )


def _unread(plain: Mapping[str, Any]) -> Iterator[str]:
    for section, read in READ.items():
        for node in values_at(plain, section):
            for name in node if isinstance(node, dict) else ():
                if name not in read:
                    close = get_close_matches(str(name), read, n=1)
                    hint = f"did you mean {section}.{close[0]}?" if close else f"it has {', '.join(read)}"
                    built = "; strategy.server and strategy.client take arguments" * (section == "strategy")
                    yield f"unknown key {section}.{name}, which nothing reads; {hint}{built}"
