"""The numbers of a round's row: from the clients' updates, from their evaluations, and from the strategy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fedresearch.errors import InputError
from fedresearch.federation.records import (
    EVAL_LOSS,
    NUM_EXAMPLES,
    NUM_STEPS,
    PERSONAL,
    TRAIN_LOSS,
    UNIFORM,
    number,
)
from fedresearch.federation.stack import StackedReplies
from fedresearch.federation.update_sums import rows_at_once

Row = dict[str, Any]
Columns = dict[str, list[Any]]

# Metrics that are not measurements: the clients' weights in averages, and a count that is summed.
_NOT_MEASURED = (NUM_EXAMPLES, UNIFORM, NUM_STEPS)
# What clients evaluate: the scope of its columns, and in a client's metrics the prefix of a name and the loss.
_EVALUATED = (("clients/", "", EVAL_LOSS), (PERSONAL, PERSONAL, f"{PERSONAL}loss"))
# Columns with fixed names; the name of another metric follows the prefix of its phase.
_COLUMNS = {TRAIN_LOSS: "train/loss", EVAL_LOSS: "clients/loss"}
_COUNTS = ("clients/available", "clients/sampled", "clients/failed", "clients/dropped", "clients/evaluated")


def measure_updates(
    origin: ArrayRecord, stack: StackedReplies, *, to_mean: bool = True
) -> tuple[Row, list[int], Columns]:
    """Return the number of local steps and the mean pairwise cosine of the clients' updates, and the nonfinite replies.

    Parameters
    ----------
    origin : ArrayRecord
        The global model that the clients received.
    stack : StackedReplies
        What they sent. Of the model, the parameters are measured.
    to_mean : bool
        Whether the cosines to the mean are measured.

    Returns
    -------
    row : dict
        The round's columns.
    nonfinite : list of int
        The places of the replies that are not finite.
    columns : dict
        For each reply, the norm of its update, and the cosine between it and the mean of the updates. NaN where it is
        not finite; the cosine also without ``to_mean``, where the update or the mean is zero, and in large blocks.
    """
    to_mean = to_mean and rows_at_once(stack.layout, len(stack)) == len(stack)
    sums = stack.sums(origin, to_mean=to_mean)
    cosines = sums.cosines(stack.held) if to_mean else [math.nan] * len(stack)
    row: Row = {"local/steps": sum(map(int, stack.metrics[NUM_STEPS]))}
    cosine = sums.cosine
    if cosine is not None:
        row["update/cosine"] = cosine
    nonfinite = [place for place, norm in enumerate(sums.norms) if math.isnan(norm)]
    return row, nonfinite, {"update/norm": sums.norms, "update/cosine": cosines}


def measure_clients(per_client: Sequence[MetricRecord], directions: Mapping[str, str]) -> Row:
    """Return the number of clients that evaluated, and the mean, spread, tail and worst of what they measured.

    Columns of the global model are named ``clients/...``, those of the clients' own models ``personal/...``. The
    entries of a metric's list have none.

    Parameters
    ----------
    per_client : sequence of MetricRecord
        The clients' metrics. A client on which a metric is NaN, which is undefined there, does not count.
    directions : mapping of str to str
        Metric to the way that is better: ``up``, ``down`` or ``none``.
    """
    row: Row = {"clients/evaluated": len(per_client)}
    for scope, prefix, loss in _EVALUATED:
        row |= _statistics(f"{scope}loss", _values(per_client, loss), "down")
        for name, direction in directions.items():
            if "/" not in name:
                values = [value for value in _values(per_client, prefix + name) if not math.isnan(value)]
                row |= _statistics(scope + name, values, direction)
    return row


def defined_means(per_client: Sequence[MetricRecord], names: Iterable[str], weighted_by: str) -> Row:
    """Return the weighted means of the metrics that are undefined on some clients, over the others."""
    weights = np.array(_values(per_client, weighted_by))
    row: Row = {}
    for scope, prefix, _ in _EVALUATED:
        for name in names:
            values = np.array(_values(per_client, prefix + name))
            defined = ~np.isnan(values)
            if defined.any() and not defined.all():
                row[scope + name] = float(np.average(values[defined], weights=weights[defined]))
    return row


def _values(per_client: Iterable[MetricRecord], key: str) -> list[float]:
    return [float(number(metrics, key)) for metrics in per_client if key in metrics]


def _statistics(name: str, values: Sequence[float], direction: str) -> Row:
    if not values:
        return {}
    with np.errstate(invalid="ignore"):  # infinite losses have a NaN as spread
        row = {f"{name}_mean": float(np.mean(values)), f"{name}_std": float(np.std(values))}
        if direction != "none":
            worst, tenth = (np.max, 90) if direction == "down" else (np.min, 10)
            row |= {f"{name}_p{tenth}": float(np.percentile(values, tenth)), f"{name}_worst": float(worst(values))}
    return row


def strategy_columns(metrics: MetricRecord | None, prefix: str, row: Mapping[str, Any]) -> Row:
    """Return a strategy's aggregated metrics as columns, in the order of their names.

    Parameters
    ----------
    metrics : MetricRecord or None
        The metrics that ``aggregate_train`` or ``aggregate_evaluate`` returned. A list becomes one column for each of
        its numbers: ``NAME/0``, ``NAME/1``, ...
    prefix : str
        ``"train/"`` or ``"clients/"``.
    row : mapping
        The round's columns so far, which must stay as they are.

    Raises
    ------
    InputError
        If a metric has the name of another column.
    """
    columns: Row = {}
    reserved = {*row, *_COUNTS}
    for key, value in sorted(metrics.items() if metrics else ()):
        if key in _NOT_MEASURED:
            continue
        name = column_name(key, prefix)
        found = {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
        if taken := found.keys() & (reserved | columns.keys()):
            raise InputError(
                f"the strategy's metric {key} would be the column {min(taken)}, which exists already; rename it"
            )
        columns |= found
    return columns


def column_name(key: str, prefix: str) -> str:
    """Return the column of a client's metric, or of what a strategy makes of it; ``prefix`` is that of the phase."""
    return _COLUMNS.get(key, key if key.startswith(PERSONAL) else prefix + key)
