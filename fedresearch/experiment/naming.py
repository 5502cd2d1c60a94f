"""What trackers call a run: its name, its group, its tags, and the short columns that runs are grouped by."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedresearch.config.schema import GROUPS, counts, is_seed
from fedresearch.dotted_keys import leaves
from fedresearch.runs.labels import declared_labels, experiment_label, key_name

# Options whose labels are tags; the first two stand in each label, whether they were typed or not.
_TAGGED = ("strategy", "partitioner", "dataset", "model")
_SECTIONS = ("federation", "local", "optimizer", "partitioner", "strategy.server", "strategy.client")
# Of Flower's FedAvg; the round loop samples the clients itself.
_OF_FLOWER = ("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes")


def run_label(record: Mapping[str, Any]) -> str:
    """Return what a paper calls a run, its seeds aside: ``FedProx (μ = 0.01), Dir(α = 0.1), E = 5``.

    It names the strategy, the partitioner, and what was typed and may change the numbers, in the config's order.
    """
    config, choices = record["config"], record["choices"]
    values = {group: choices[group] for group in _TAGGED[:2]}
    values |= {key: value for key, value in _typed(record) if key.partition(".")[0] != "metrics"}
    return experiment_label(values, declared_labels(config))


def group_name(record: Mapping[str, Any]) -> str:
    """Return a run's label with the first digits of its cell, which distinguish what has the same label."""
    cell = f" #{record['cell'][:4]}"
    return run_label(record)[: 128 - len(cell)] + cell  # as long as W&B takes


def tags(record: Mapping[str, Any]) -> list[str]:
    """Return the options that were chosen, and the labels of those that have numbers in them."""
    options, labels = record["choices"], declared_labels(record["config"])
    numbered = [labels[group] for group in _TAGGED if "=" in labels.get(group, "")]
    return [*(str(options[group]) for group in _TAGGED), *numbered]


def short_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what runs are grouped by, under short names: the options, the seed, ``lr``, ``alpha``, ``mu``, the cell.

    They are the numbers of the federation, of local training, and of the optimizer, partitioner and strategy, and what
    else was typed. A name that is taken has its group in front: ``strategy_alpha``.
    """
    config, choices = record["config"], record["choices"]
    columns = {group: choices[group] for group in GROUPS if group != "tracker"}
    columns |= {"seed": config["seed"], "cell": record["cell"], "digest": record["digest"]}
    numbers = {key: value for key, value in leaves(config) if _is_number(key, value)}
    for key, value in {**numbers, **dict(_typed(record))}.items():
        name, group = key_name(key), key.partition(".")[0]
        # FedDyn, too, has an alpha, and a dataset may: the column is Dirichlet's in every run.
        if name in columns or (name == "alpha" and group != "partitioner"):
            name = f"{group}_{name}"
        if key != group:
            columns[name] = value if isinstance(value, bool | int | float | str) or value is None else str(value)
    return columns


def _typed(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys that were typed and may change the numbers, seeds aside, with their values, in one order."""
    words = {word.lstrip("+~").partition("=")[0] for word in record["overrides"]}
    known = {group: record["choices"].get(group) for group in (*GROUPS, "experiment")} | dict(leaves(record["config"]))
    for key, value in known.items():
        if key in words and counts(key) and not is_seed(key):
            yield key, value


def _is_number(key: str, value: Any) -> bool:
    section, _, name = key.rpartition(".")
    of_flower = section == "strategy.server" and name in _OF_FLOWER
    return section in _SECTIONS and type(value) in (int, float) and not is_seed(key) and not of_flower
