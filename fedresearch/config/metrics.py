"""What the options of metrics declare: which targets they need, and which way is better."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedresearch.config.schema import Config

_ALLOWED = {"direction": ("up", "down", "none"), "targets": ("classes", "numbers", None)}
_TEXTS = ("unit", "definition", "label")
_TAKEN = ("loss", "eval_loss", "num-examples", "uniform")  # what an evaluation's reply has besides


def check_metrics(config: Config) -> Iterator[str]:
    """Yield a line for each metric that has the name of another column, or whose declarations are wrong."""
    for name, node in config.metrics.items():
        declares = node.get("declares")
        if name in _TAKEN or "/" in name:
            yield f"a metric must have a name without / that is none of {', '.join(_TAKEN)}, got {name}"
        if not isinstance(declares, dict):
            yield f"metrics.{name}.declares is missing; its option's YAML must give it, such as {{direction: up}}"
            continue
        yield from _check_declaration(f"metrics.{name}.declares", declares, "targets")
    declares = config.strategy.get("declares", {}).get("metrics", {})
    for name, declaration in declares.items():
        if not name.startswith(("train/", "clients/")):
            yield f"strategy.declares.metrics must name columns train/NAME or clients/NAME, got {name}"
        yield from _check_declaration(f"strategy.declares.metrics.{name}", declaration)


def _check_declaration(key: str, declares: Mapping[str, Any], *more: str) -> Iterator[str]:
    for name in ("direction", *more):
        allowed = _ALLOWED[name]
        if declares.get(name) not in allowed:
            words = " or ".join(word for word in allowed if word)
            yield f"{key}.{name} must be {words}, got {declares.get(name)}; its option's YAML must give it"
    for name in declares.keys() - {"direction", *more, *_TEXTS}:
        yield f"unknown key {key}.{name}, which nothing reads; it has {', '.join(('direction', *more, *_TEXTS))}"


def unfit(config: Config) -> dict[str, str]:
    """Return the metrics that do not fit the dataset's targets, and what they need: ``classes`` or ``numbers``."""
    targets = "classes" if config.dataset["declares"]["num_classes"] > 1 else "numbers"
    needed = {name: node["declares"].get("targets", targets) for name, node in config.metrics.items()}
    return {name: needs for name, needs in needed.items() if needs != targets}
