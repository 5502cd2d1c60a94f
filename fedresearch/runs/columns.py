"""The columns of ``metrics.jsonl``: what each number is, and which way it is better."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

Direction = Literal["up", "down", "none"]
Weighting = Literal["by num_examples", "unweighted", "sum", "none"]
# Name to definition, unit, weighting and direction, as a run's record has them.
Declared = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A column.

    Parameters
    ----------
    name : str
        As in a row, in W&B and in TensorBoard.
    definition : str
        What is measured.
    unit : str
        Of its numbers; "" where they have none.
    weighting : str
        How clients are combined. ``by num_examples`` is as ``strategy.weighted_by`` says, which is so by default.
    direction : str
        ``up`` where larger is better, ``down`` where smaller is, ``none`` where neither is.
    needs : tuple of str
        The keys of ``NEEDS`` that must all hold in a round, or the column is missing.
    """

    name: str
    definition: str
    unit: str
    weighting: Weighting
    direction: Direction
    needs: tuple[str, ...] = ()


# In words: what a column may need to be in a row.
NEEDS = {
    "training": "a client trains",
    "evaluation": "evaluated rounds",
    "train evaluation": "evaluated rounds; `federation.evaluate_train`",
    "validation": "evaluated rounds; clients evaluate",
    "own models": "clients have models of their own",
    "drop": "`federation.nonfinite=drop`",
    "two updates": "two updates or more are finite and not zero",
}

_SHARE, _LOSS = "share, 0 to 1", "loss"
_SPREAD = {"mean": "mean", "std": "standard deviation"}
_TAILS = {
    "up": {"p10": "10th percentile", "worst": "smallest"},
    "down": {"p90": "90th percentile", "worst": "largest"},
    "none": {},
}


def evaluated(name: str, declares: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns of what is evaluated on the test split, and by clients on their validation data.

    Parameters
    ----------
    name : str
        The metric, or ``METRIC/INDEX`` of a list's entry.
    declares : mapping
        Its ``direction`` and, where they are known, ``unit`` and ``definition``.
    """
    direction, unit = declares["direction"], declares.get("unit", "")
    definition = declares.get("definition", name.partition("/")[0])
    definition += f", entry {name.partition('/')[2]}" * ("/" in name)
    columns = [
        Column(
            f"eval/{name}",
            f"{definition} of the global model on the test split",
            unit,
            "none",
            direction,
            ("evaluation",),
        )
    ]
    on = f"{definition} on clients' validation data"
    statistics = {} if "/" in name else {**_SPREAD, **_TAILS[direction]}
    for scope, needs in (("clients", ("validation",)), ("personal", ("validation", "own models"))):
        columns.append(Column(f"{scope}/{name}", f"{on}: mean", unit, "by num_examples", direction, needs))
        for statistic, words in statistics.items():
            way: Direction = "down" if statistic == "std" else direction
            columns.append(Column(f"{scope}/{name}_{statistic}", f"{on}: {words}", unit, "unweighted", way, needs))
    return tuple(columns)


COLUMNS = (
    Column("round", "the round; 0 is the evaluation of the initial model", "", "none", "none"),
    Column("local/lr", "learning rate of the clients", "", "none", "none"),
    Column("local/steps", "optimizer steps; fine-tuning before an evaluation does not count", "steps", "sum", "none"),
    Column(
        "train/loss",
        "mean of a client's batch losses in local training",
        _LOSS,
        "by num_examples",
        "down",
        ("training",),
    ),
    Column(
        "train/global_loss",
        "mean loss of the global model on all clients' training samples",
        _LOSS,
        "by num_examples",
        "down",
        ("train evaluation",),
    ),
    Column("update/norm", "Euclidean norm of the change of the global parameters", "", "none", "none"),
    Column(
        "update/cosine",
        "mean cosine between the parameter updates of two clients, over all pairs",
        "-1 to 1",
        "unweighted",
        "none",
        ("two updates",),
    ),
    Column("clients/available", "clients that could train: they are there and have samples", "clients", "sum", "none"),
    Column("clients/sampled", "clients that were sent the model to train it", "clients", "sum", "none"),
    Column("clients/failed", "clients that failed, in training and in evaluation", "clients", "sum", "down"),
    Column("clients/dropped", "clients whose updates were not finite", "clients", "sum", "down", ("drop",)),
    Column("clients/evaluated", "clients that evaluated", "clients", "sum", "none", ("evaluation",)),
    *evaluated("loss", {"direction": "down", "unit": _LOSS}),
    Column("comm/bytes_down", "payload of the messages to the clients that train", "bytes", "sum", "down"),
    Column("comm/bytes_up", "payload of the replies of the clients that train", "bytes", "sum", "down"),
    Column("comm/bytes_down_total", "`comm/bytes_down` of all rounds so far", "bytes", "sum", "down"),
    Column("comm/bytes_up_total", "`comm/bytes_up` of all rounds so far", "bytes", "sum", "down"),
    Column(
        "comm/evaluate_bytes_down",
        "payload of the messages to the clients that evaluate",
        "bytes",
        "sum",
        "down",
        ("validation",),
    ),
    Column(
        "comm/evaluate_bytes_up",
        "payload of the replies of the clients that evaluate",
        "bytes",
        "sum",
        "down",
        ("validation",),
    ),
    Column("model/sha256", "SHA-256 of the global arrays", "text", "none", "none"),
    Column("time/round_s", "wall-clock time of the round", "seconds", "none", "down"),
    Column(
        "time/total_s",
        "wall-clock time of all rounds so far, with what is written between them",
        "seconds",
        "none",
        "down",
    ),
)

_FIXED = {column.name: column for column in COLUMNS}


def of_strategy(name: str, declares: Mapping[str, Any]) -> Column:
    """Return the column of what a strategy measures, ``train/...`` or ``clients/...``, as its option declares it."""
    return Column(
        name, declares.get("definition", name), declares.get("unit", ""), "by num_examples", declares["direction"]
    )


def declared(columns: Iterable[Column]) -> Declared:
    """Return those of the columns that not every run has, as a run's record declares them."""
    return {
        column.name: {name: value for name, value in asdict(column).items() if name not in ("name", "needs")}
        for column in columns
        if column.name not in _FIXED
    }


def is_declared(name: str, others: Declared) -> bool:
    """Return whether it is known what a column is: each run has it, or the record of a run declares it."""
    return bool(_known(name, others))


def direction(name: str, others: Declared = MappingProxyType({})) -> Direction:
    """Return which way a column is better.

    Parameters
    ----------
    name : str
        The column. Where nobody declares it, the end of its name decides: ``down`` if that is ``loss`` or ``error``,
        before the number of a list's entry, and else ``up``.
    others : mapping
        What the records of runs declare.
    """
    known = _known(name, others)
    return known["direction"] if known else "down" if re.search(r"(loss|error)(/\d+)?$", name) else "up"


def is_share(name: str, others: Declared = MappingProxyType({})) -> bool:
    """Return whether a column is known to lie between 0 and 1."""
    return _known(name, others).get("unit") == _SHARE


def larger_is_better(name: str, others: Declared = MappingProxyType({})) -> bool:
    """Return whether a column is better the larger it is."""
    return direction(name, others) == "up"


def _known(name: str, others: Declared) -> Mapping[str, Any]:
    """Return the declaration of a column, or of the list of which it is an entry; empty where there is none."""
    if name in _FIXED:
        return vars(_FIXED[name])
    return others.get(name) or others.get(re.sub(r"/\d+$", "", name), {})
