"""What a round's row says: of the clients' updates, of their evaluations, and what the strategy measured itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.federation.records import (
    EVAL_ACC,
    EVAL_LOSS,
    NUM_EXAMPLES,
    NUM_STEPS,
    PERSONAL_ACC,
    PERSONAL_LOSS,
    TRAIN_LOSS,
    UNIFORM,
    arrays_of,
    flatten,
    is_finite,
    metrics_of,
    number,
)
from fedresearch.local.state_names import Names

Row = dict[str, Any]

# Metrics that are not measurements: what clients weigh in averages, and what is summed and not averaged.
_NOT_MEASURED = (NUM_EXAMPLES, UNIFORM, NUM_STEPS)
# Columns with names of their own; a strategy's other metrics have theirs behind the phase's prefix.
_COLUMNS = {TRAIN_LOSS: "train/loss", PERSONAL_LOSS: "personal/eval_loss", PERSONAL_ACC: "personal/eval_acc"}
_COUNTS = ("clients/sampled", "clients/failed", "clients/dropped", "clients/evaluated")


def measure_updates(origin: NDArray[np.float64], replies: list[Message], names: Names) -> tuple[Row, list[Message]]:
    """Return the local steps, and how far the clients' updates agree: their mean pairwise cosine.

    Also return the replies that are not finite, which agree with none.

    With unit vectors u_i, the sum over pairs is ``(|sum u_i|^2 - n) / 2``: one vector is kept, not one a client.
    """
    total, update, count = np.zeros_like(origin), np.empty_like(origin), 0
    nonfinite = []
    for reply in replies:
        flatten(arrays_of(reply.content), names, update)
        update -= origin
        norm = np.linalg.norm(update)
        if not np.isfinite(norm) or not is_finite(reply.content, without=names):
            nonfinite.append(reply)
        elif norm > 0:
            update /= norm
            total += update
            count += 1
    row: Row = {"local/steps": sum(int(number(metrics_of(reply.content), NUM_STEPS)) for reply in replies)}
    if count > 1:
        row["update/cosine"] = float((total @ total - count) / (count * (count - 1)))
    return row, nonfinite


def measure_clients(per_client: Sequence[MetricRecord]) -> Row:
    """Return how many clients evaluated, and the mean, spread, 10th percentile and worst of what they measured.

    Numbers of the global model are named ``clients/...``, those of the clients' own models ``personal/...``.
    """
    row: Row = {"clients/evaluated": len(per_client)}
    for key, name, worst, tenth in (
        (EVAL_LOSS, "clients/loss", np.max, 90),
        (EVAL_ACC, "clients/accuracy", np.min, 10),
        (PERSONAL_LOSS, "personal/loss", np.max, 90),
        (PERSONAL_ACC, "personal/accuracy", np.min, 10),
    ):
        values = [float(number(metrics, key)) for metrics in per_client if key in metrics]
        if values:
            with np.errstate(invalid="ignore"):  # losses may be infinite, and have no spread then
                row[f"{name}_mean"] = float(np.mean(values))
                row[f"{name}_std"] = float(np.std(values))
                row[f"{name}_p{tenth}"] = float(np.percentile(values, tenth))
                row[f"{name}_worst"] = float(worst(values))
    return row


def strategy_columns(metrics: MetricRecord | None, prefix: str, row: Mapping[str, Any]) -> Row:
    """Return what a strategy aggregated, as columns in the order of their names.

    Parameters
    ----------
    metrics : MetricRecord or None
        What its ``aggregate_train`` or ``aggregate_evaluate`` returned. A list becomes a column for each of its
        numbers: ``NAME/0``, ``NAME/1``, ...
    prefix : str
        ``"train/"`` or ``"clients/"``.
    row : mapping
        The round's columns so far, none of which is replaced.

    Raises
    ------
    InputError
        If a metric has the name of another column.
    """
    columns: Row = {}
    for key, value in sorted(metrics.items() if metrics else ()):
        if key in _NOT_MEASURED:
            continue
        name = _COLUMNS.get(key, prefix + key)
        found = {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
        if taken := found.keys() & {*row, *columns, *_COUNTS}:
            raise InputError(
                f"the strategy's metric {key} would be the column {min(taken)}, which there is already; rename it"
            )
        columns |= found
    return columns
