"""What each client of a round did: a line of the clients' table, as columns with an entry for each client."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message

from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.measures import Columns, column_name
from fedresearch.federation.records import NUM_EXAMPLES, NUM_STEPS, UNIFORM, bytes_of, content_bytes, metrics_of
from fedresearch.federation.stack import StackedReplies


class _Phase(NamedTuple):
    """How the columns of one phase of a round are named."""

    failed: str
    bytes_prefix: str
    metrics_prefix: str
    names: Mapping[str, str]


_PHASES = {
    "train": _Phase("failed", "comm/", "train/", {NUM_EXAMPLES: "num_examples", NUM_STEPS: "local/steps"}),
    "evaluate": _Phase("evaluate_failed", "comm/evaluate_", "clients/", {NUM_EXAMPLES: "num_validation"}),
}


def client_columns(cohort: CohortGrid, messages: Sequence[Message], answers: Sequence[Message], phase: str) -> Columns:
    """Return the columns of the clients that train, or of those that evaluate.

    Parameters
    ----------
    cohort : CohortGrid
        The clients.
    messages, answers : sequence of Message
        What the clients were sent, and for each a reply or an error. The columns have an entry for each answer, None
        for what a client that failed does not have.
    phase : str
        ``"train"`` or ``"evaluate"``.
    """
    failed, bytes_prefix, metrics_prefix, names = _PHASES[phase]
    if isinstance(messages, Broadcast):
        down = dict.fromkeys(messages.node_ids, content_bytes(messages.content))
    else:
        down = dict(zip((message.metadata.dst_node_id for message in messages), bytes_of(messages), strict=True))
    measured: Mapping[str, list[Any]]
    if isinstance(answers, StackedReplies):
        num_failed = len(answers.errors)
        nodes = [*answers.node_ids, *(error.metadata.src_node_id for error in answers.errors)]
        up = [answers.message_bytes] * len(answers) + [0] * num_failed
        measured = {key: values + [None] * num_failed for key, values in answers.metrics.items()}
        has_failed = [False] * len(answers) + [True] * num_failed
    else:
        nodes, up = [answer.metadata.src_node_id for answer in answers], bytes_of(answers)
        has_failed = [answer.has_error() for answer in answers]
        metrics = [{} if answer.has_error() else dict(metrics_of(answer.content)) for answer in answers]
        measured = {key: [own.get(key) for own in metrics] for key in {key: None for own in metrics for key in own}}
    columns: Columns = {
        "partition_id": [cohort.partition_of(node) for node in nodes],
        failed: has_failed,
        f"{bytes_prefix}bytes_down": [down[node] for node in nodes],
        f"{bytes_prefix}bytes_up": up,
        **{
            names.get(key) or column_name(key, metrics_prefix): values
            for key, values in measured.items()
            if key != UNIFORM
        },
    }
    if not isinstance(answers, StackedReplies) or not answers.errors:
        return columns
    order = np.argsort(columns["partition_id"])
    return {name: [values[place] for place in order] for name, values in columns.items()}


def with_updates(columns: Columns, measured: Columns) -> Columns:
    """Return the columns of the clients that train with those of their updates, which have an entry for each reply."""
    if True not in columns["failed"]:
        return columns | measured
    entries = {name: iter(values) for name, values in measured.items()}
    return columns | {
        name: [None if failed else next(values) for failed in columns["failed"]] for name, values in entries.items()
    }
