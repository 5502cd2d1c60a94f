"""The columns of ``metrics.jsonl``: what each number is, and which way it is better."""

import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "none"]
Weighting = Literal["by num_examples", "unweighted", "sum", "none"]


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
    "evaluation": "evaluated rounds",
    "validation": "evaluated rounds; clients evaluate",
    "own models": "clients have models of their own",
    "classes": "the dataset has classes",
    "drop": "`federation.nonfinite=drop`",
    "two updates": "two updates or more are finite and not zero",
}

_SHARE, _LOSS = "share, 0 to 1", "loss"
_SPREAD = {"mean": "mean", "std": "standard deviation", "p10": "10th percentile", "p90": "90th percentile"}


def _of_clients(whose: str, *needs: str) -> tuple[Column, ...]:
    """Return the columns of what clients measure on their validation data, of a model that the scope names."""
    found = []
    measures: tuple[tuple[str, str, str, Direction, str, tuple[str, ...]], ...] = (
        ("loss", _LOSS, "p90", "down", "largest", needs),
        ("accuracy", _SHARE, "p10", "up", "smallest", (*needs, "classes")),
    )
    for measure, unit, tail, direction, worst, its_needs in measures:
        on = f"{measure} on clients' validation data"
        found.append(Column(f"{whose}/{measure}", f"{on}: mean", unit, "by num_examples", direction, its_needs))
        for part in ("mean", "std", tail, "worst"):
            way: Direction = "down" if part == "std" else direction
            definition = f"{on}: {_SPREAD.get(part, worst)}"
            found.append(Column(f"{whose}/{measure}_{part}", definition, unit, "unweighted", way, its_needs))
    return tuple(found)


COLUMNS = (
    Column("round", "the round; 0 is the evaluation of the initial model", "", "none", "none"),
    Column("local/lr", "learning rate of the clients", "", "none", "none"),
    Column("local/steps", "optimizer steps; fine-tuning before an evaluation does not count", "steps", "sum", "none"),
    Column("train/loss", "mean of a client's batch losses in local training", _LOSS, "by num_examples", "down"),
    Column("update/norm", "Euclidean norm of the change of the global parameters", "", "none", "none"),
    Column(
        "update/cosine",
        "mean cosine between the parameter updates of two clients, over all pairs",
        "-1 to 1",
        "unweighted",
        "none",
        ("two updates",),
    ),
    Column("clients/sampled", "clients that were sent the model to train it", "clients", "sum", "none"),
    Column("clients/failed", "clients that failed, in training and in evaluation", "clients", "sum", "down"),
    Column("clients/dropped", "clients whose updates were not finite", "clients", "sum", "down", ("drop",)),
    Column("clients/evaluated", "clients that evaluated", "clients", "sum", "none", ("evaluation",)),
    Column("eval/loss", "mean loss of the global model on the test split", _LOSS, "none", "down", ("evaluation",)),
    Column(
        "eval/accuracy",
        "accuracy of the global model on the test split",
        _SHARE,
        "none",
        "up",
        ("evaluation", "classes"),
    ),
    *_of_clients("clients", "validation"),
    *_of_clients("personal", "validation", "own models"),
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

_DECLARED = {column.name: column for column in COLUMNS}


def expected_columns(*, classes: bool, evaluated: bool, own_models: bool, dropped: bool) -> list[str]:
    """Return the columns of numbers that a run has, but for what its strategy measures itself.

    Parameters
    ----------
    classes : bool
        Whether the dataset has classes, and so accuracies.
    evaluated : bool
        Whether clients evaluate.
    own_models : bool
        Whether they evaluate models of their own, too.
    dropped : bool
        Whether updates that are not finite are left out and counted.
    """
    holds = {"classes": classes, "validation": evaluated, "own models": own_models, "drop": dropped}
    return [
        column.name
        for column in COLUMNS
        if column.unit != "text" and all(holds.get(need, True) for need in column.needs)
    ]


def is_declared(name: str) -> bool:
    """Return whether a column is in the table; else it is what a strategy measures itself."""
    return name in _DECLARED


def direction(name: str) -> Direction:
    """Return which way a column is better; of one that a strategy measures itself, by the end of its name.

    Then ``down`` where that is ``loss`` or ``error``, before the number of a list's entry, and else ``up``.
    """
    if name in _DECLARED:
        return _DECLARED[name].direction
    return "down" if re.search(r"(loss|error)(/\d+)?$", name) else "up"


def is_share(name: str) -> bool:
    """Return whether a column is known to lie between 0 and 1."""
    return name in _DECLARED and _DECLARED[name].unit == _SHARE


def larger_is_better(name: str) -> bool:
    """Return whether a column is better the larger it is."""
    return direction(name) == "up"
