"""What figures, tables and trackers call experiments, keys and columns: as papers do."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fedresearch.errors import printable
from fedresearch.runs.columns import Declared, is_share
from fedresearch.runs.comparison import format_value

Names = Mapping[str, str]
NO_NAMES: Names = MappingProxyType({})

# McMahan et al. 2017's letters, and the usual ones where it has none: in a label, and as a title.
_KEYS = {
    "optimizer.lr": ("η", "Learning rate η"),
    "local.epochs": ("E", "Local epochs E"),
    "local.steps": ("τ", "Local steps τ"),
    "local.batch_size": ("B", "Batch size B"),
    "federation.fraction_train": ("C", "Share of clients C"),
    "federation.num_supernodes": ("K", "Clients K"),
    "federation.num_rounds": ("T", "Rounds T"),
}
_GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "eta": "η",
    "lam": "λ",
    "mu": "μ",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
}
_PER_CENT = " (%)"
_SCOPES = {"eval": "test", "clients": "client", "personal": "personalised", "train": "training"}
_STATISTICS = {
    "mean": "mean",
    "std": "standard deviation",
    "p10": "10th percentile",
    "p90": "90th percentile",
    "worst": "worst",
}
_COLUMNS = {
    "local/lr": "learning rate",
    "local/steps": "local steps",
    "train/global_loss": "training loss of the global model",
    "update/norm": "norm of the global update",
    "update/cosine": "cosine between clients' updates",
    "clients/available": "clients available",
    "clients/sampled": "clients sampled",
    "clients/failed": "clients failed",
    "clients/dropped": "clients dropped",
    "clients/evaluated": "clients evaluated",
    "time/round_s": "seconds a round",
    "time/total_s": "seconds",
}


def declared_labels(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what the options of a recorded config are called, by their group, for those that say so."""
    declared = {group: node.get("declares") for group, node in config.items() if isinstance(node, Mapping)}
    labels = {group: node.get("label") for group, node in declared.items() if isinstance(node, Mapping)}
    return {group: _tidy(label) for group, label in labels.items() if isinstance(label, str) and label}


def _tidy(label: str) -> str:
    """Return a printable label in which a whole number has no decimal point: ``μ = 1`` for ``μ = 1.0``."""
    return re.sub(r"(?<=\d)\.0(?![\d.])", "", printable(label))


def experiment_label(values: Mapping[str, Any], options: Mapping[str, str], names: Names = NO_NAMES) -> str:
    """Return what a paper calls an experiment: ``FedProx (μ = 0.01), Dir(α = 0.1), E = 5``.

    Parameters
    ----------
    values : mapping
        The keys that distinguish it, and their values; an option has its group's name as its key.
    options : mapping
        What its options are called, as by :func:`declared_labels`. An option's label also says the numbers that are in
        it, and stands where any key of its group is among ``values``.
    names : mapping
        What to use instead: the name of a key, such as ``optimizer.lr``, or the label of a value, such as
        ``strategy=fedprox``.
    """
    return ", ".join(dict.fromkeys(_parts(values, options, names)))


def _parts(values: Mapping[str, Any], options: Mapping[str, str], names: Names) -> Iterator[str]:
    for key, value in values.items():
        group = key.partition(".")[0]
        named = names.get(f"{key}={format_value(value)}")
        label = names.get(f"{group}={format_value(values.get(group))}", options.get(group, ""))
        if label:
            yield label
        if named or (key == group and not label):
            yield named or format_value(value)
        elif key != group and not _says(label, value):
            yield f"{key_symbol(key, names)} = {_value(value)}"


def _says(label: str, value: Any) -> bool:
    """Return whether a value is in a label."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return any(float(number) == value for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", label))
    return format_value(value) in label


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value)


def key_symbol(key: str, names: Names = NO_NAMES) -> str:
    """Return a key's name in a label: ``E``."""
    if key in names or key in _KEYS:
        return names.get(key) or _KEYS[key][0]
    words = key.rpartition(".")[2].split("_")
    return _GREEK.get(words[-1], " ".join(words))


def key_name(key: str) -> str:
    """Return a key's name as a short word: ``lr``, and ``mu`` for ``strategy.server.proximal_mu``."""
    name = key.rpartition(".")[2]
    return name if (last := name.rpartition("_")[2]) not in _GREEK else last


def key_title(key: str, names: Names = NO_NAMES) -> str:
    """Return a key's name on an axis or over a column: ``Local epochs E``."""
    return names.get(key) or (_KEYS[key][1] if key in _KEYS else _capital(key_symbol(key)))


def column_label(column: str, others: Declared, metrics: Names = NO_NAMES, names: Names = NO_NAMES) -> str:
    """Return what a figure calls a column of ``metrics.jsonl``: ``Test accuracy (%)``. Shares are shown as per cent.

    Parameters
    ----------
    column : str
        Its name.
    others : mapping
        What the records of runs declare of their columns.
    metrics : mapping
        Metric to its label, such as ``macro_f1`` to ``macro F1``.
    names : mapping
        What to use instead, by column. It gets the unit too, unless it has a parenthesis of its own.
    """
    unit = _PER_CENT * is_share(column, others)
    if column in names:
        return names[column] + unit * ("(" not in names[column])
    if column in _COLUMNS:
        return _capital(_COLUMNS[column]) + unit
    scope, _, measure = column.partition("/")
    name, _, entry = measure.partition("/")
    statistic = next((word for word in _STATISTICS if name.endswith(f"_{word}")), "")
    name = name.removesuffix(f"_{statistic}")
    words = f"{_SCOPES.get(scope, scope)} {metrics.get(name, name.replace('_', ' '))}"
    words += f" {entry}" * bool(entry) + (f", {_STATISTICS[statistic]}" if statistic else "")
    return _capital(words) + unit


def without_unit(label: str) -> str:
    """Return a column's label as it stands inside a sentence: ``Test accuracy``."""
    return label.removesuffix(_PER_CENT)


def in_a_sentence(label: str) -> str:
    """Return a label without its capital, unless it begins with an abbreviation such as AUC."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def metric_labels(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what the metrics of a recorded config are called, for those that say so."""
    metrics = config.get("metrics")
    return declared_labels(metrics) if isinstance(metrics, Mapping) else {}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
