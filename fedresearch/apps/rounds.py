"""The round loop: Flower's strategy hooks, one row of numbers a round."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedresearch.apps.averaging import aggregate_train
from fedresearch.apps.cohort import CohortGrid
from fedresearch.apps.records import (
    ARRAYS,
    EVAL_ACC,
    EVAL_LOSS,
    LR,
    NUM_EXAMPLES,
    NUM_STEPS,
    PERSONAL_ACC,
    PERSONAL_LOSS,
    TRAIN_LOSS,
    UNIFORM,
    arrays_of,
    cast_like,
    count_bytes,
    flatten,
    metrics_of,
    number,
    sha256,
    view,
)
from fedresearch.errors import InputError
from fedresearch.local.parts import Names

Row = dict[str, Any]

_TOTALS = ("comm/bytes_down", "comm/bytes_up")


class ClientsFailed(RuntimeError):
    """More clients failed in a round than may."""


class Diverged(RuntimeError):
    """An update or the global model is not finite any more."""


@dataclass
class RoundLoop:
    """A federated run, round by round.

    ``Strategy.start`` has no per-round callback, no start round and no order; this loop calls the same four hooks.

    Attributes
    ----------
    strategy : Strategy
        The server half of the strategy. It is shown each round's cohort as if it were the whole federation.
    num_rounds : int
        Rounds to run.
    target_accuracy : float or None
        The ``eval/accuracy`` that ends the run earlier; None: nothing does.
    train_cohort, evaluate_cohort : callable
        The partition ids that train in a round, and that evaluate the new global model. A client that is there twice
        trains once and counts twice in the average.
    evaluate_every : int
        Evaluate in the rounds divisible by this, and in the last one.
    parameters : set of str
        The arrays that are no buffers: whose movement is measured.
    client_config : callable
        The numbers that a round's clients are sent.
    evaluate : callable
        The server's own evaluation of global arrays: numbers named ``eval/...``.
    log : callable
        Given each round's row, and the new global arrays, as the round ends.
    max_failures : int
        Clients that may fail in a round, in training and in evaluation each.
    nonfinite : str
        What becomes of updates with NaN or infinity: ``"stop"`` raises :class:`Diverged`, ``"drop"`` leaves them out,
        ``"keep"`` averages them like others.
    log_failure : callable
        Given the round, the partition id, what the client was doing, and what it raised.
    """

    strategy: Strategy
    num_rounds: int
    target_accuracy: float | None
    train_cohort: Callable[[int], Sequence[int]]
    evaluate_cohort: Callable[[int], Sequence[int]]
    evaluate_every: int
    parameters: Names
    client_config: Callable[[int], dict[str, float]]
    evaluate: Callable[[ArrayRecord], Row]
    log: Callable[[Row, ArrayRecord], None]
    max_failures: int
    nonfinite: str
    log_failure: Callable[[int, int, str, str], None]
    _totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOTALS, 0))

    def run(self, grid: Grid, arrays: ArrayRecord, last: Row | None = None) -> ArrayRecord:
        """Run all rounds from the given global arrays, or those after the last, and return the last ones.

        Parameters
        ----------
        grid : Grid
            Where the clients are; its node ids are in partition order.
        arrays : ArrayRecord
            The initial global model, or the one after the last round.
        last : dict, optional
            The row of the last round, where there is one. The strategy and the clients' states are as they were then.

        Raises
        ------
        ClientsFailed
            If more clients fail than may, with the first one's partition id and what it raised.
        Diverged
            If an update or the global model is not finite and ``nonfinite`` is ``"stop"``.
        """
        row = last or {"round": 0, "time/total_s": 0.0, **{f"{key}_total": 0 for key in _TOTALS}}
        self._totals = {key: row[f"{key}_total"] for key in _TOTALS}
        started = time.perf_counter() - row["time/total_s"]
        while row["round"] < self.num_rounds and not self._reached(row):
            row, arrays = self._round(row["round"] + 1, grid, arrays)
            row["time/total_s"] = time.perf_counter() - started
            self.log(row, arrays)
        return arrays

    def _reached(self, row: Row) -> bool:
        return self.target_accuracy is not None and row.get("eval/accuracy", 0.0) >= self.target_accuracy

    def _round(self, server_round: int, grid: Grid, arrays: ArrayRecord) -> tuple[Row, ArrayRecord]:
        started = time.perf_counter()
        row: Row = {"round": server_round}

        config = self._config(server_round)
        row["local/lr"] = float(number(config, LR))
        drawn = Counter(self.train_cohort(server_round))
        cohort = CohortGrid(grid, sorted(drawn))
        messages = list(self.strategy.configure_train(server_round, arrays, config, cohort))
        row |= {"clients/sampled": len(messages), "clients/failed": 0}
        replies = self._send(cohort, messages, row, "train", "comm/")
        for reply in replies:
            _check_reply(reply, arrays, cohort)
        origin = flatten(arrays, self.parameters)
        # Before aggregating: some strategies take the replies apart.
        measured, nonfinite = _measure_updates(origin, replies, self.parameters)
        row |= measured
        if nonfinite and self.nonfinite == "stop":
            partition_ids = [cohort.partition_of(reply.metadata.src_node_id) for reply in nonfinite]
            raise Diverged(f"the updates of partitions {partition_ids} are not finite in round {server_round}")
        if self.nonfinite == "drop":
            row["clients/dropped"] = len(nonfinite)
            replies = [reply for reply in replies if reply not in nonfinite]
        counted = [
            copy.deepcopy(reply) if again else reply
            for reply in replies
            for again in range(drawn[cohort.partition_of(reply.metadata.src_node_id)])
        ]
        aggregated, metrics = aggregate_train(self.strategy, server_round, counted) if counted else (None, None)
        if metrics is not None:
            row["train/loss"] = float(number(metrics, TRAIN_LOSS))
        if aggregated is not None:
            arrays = cast_like(aggregated, arrays)
        row["update/norm"] = float(np.linalg.norm(flatten(arrays, self.parameters) - origin))
        if self.nonfinite == "stop" and not np.isfinite(row["update/norm"]):
            raise Diverged(f"the global model is not finite after round {server_round}")

        if server_round % self.evaluate_every == 0 or server_round == self.num_rounds:
            row |= self.evaluate(arrays)
            cohort = CohortGrid(grid, sorted(self.evaluate_cohort(server_round)))
            if cohort.partition_ids:
                asked = self.strategy.configure_evaluate(server_round, arrays, self._config(server_round), cohort)
                replies = self._send(cohort, asked, row, "evaluate", "comm/evaluate_")
                per_client = [metrics_of(reply.content) for reply in replies]
                if replies:
                    row |= _measure_clients(per_client, self.strategy.aggregate_evaluate(server_round, replies))

        for key in self._totals:
            self._totals[key] += row[key]
            row[f"{key}_total"] = self._totals[key]
        row["model/sha256"] = sha256(arrays)
        row["time/round_s"] = time.perf_counter() - started
        return row, arrays

    def _config(self, server_round: int) -> ConfigRecord:
        # A record of its own each time: strategies write into it.
        return ConfigRecord(dict(self.client_config(server_round)))

    def _send(
        self, cohort: CohortGrid, messages: Iterable[Message], row: Row, doing: str, prefix: str
    ) -> list[Message]:
        """Send messages and return the replies, both in partition order; count their bytes under a prefix.

        Clients that fail are told, counted, and left out.
        """
        outgoing = sorted(messages, key=lambda message: cohort.partition_of(message.metadata.dst_node_id))
        replies = sorted(
            cohort.send_and_receive(messages=outgoing),
            key=lambda reply: cohort.partition_of(reply.metadata.src_node_id),
        )
        failed = [(cohort.partition_of(r.metadata.src_node_id), str(r.error.reason)) for r in replies if r.has_error()]
        for partition_id, reason in failed:
            self.log_failure(row["round"], partition_id, doing, reason)
        if len(failed) > self.max_failures:
            who = ", ".join(str(partition_id) for partition_id, _ in failed)
            many = "s" if len(failed) > 1 else ""
            raise ClientsFailed(
                f"the client{many} of partition{many} {who} failed in round {row['round']}:\n{failed[0][1]}"
            )
        replies = [reply for reply in replies if not reply.has_error()]
        row["clients/failed"] += len(failed)
        row[f"{prefix}bytes_down"] = count_bytes(outgoing)
        row[f"{prefix}bytes_up"] = count_bytes(replies)
        return replies


def _check_reply(reply: Message, arrays: ArrayRecord, cohort: CohortGrid) -> None:
    """Refuse a reply whose model is not the global one's like, or that does not say what it weighs.

    Raises
    ------
    InputError
        With what is other, or missing.
    """
    of = f"the reply of partition {cohort.partition_of(reply.metadata.src_node_id)}"
    record, metrics = arrays_of(reply.content), metrics_of(reply.content)
    if record.keys() != arrays.keys():
        other = sorted(record.keys() ^ arrays.keys())
        raise InputError(f"{of} has other arrays than the global model: {', '.join(other)}")
    for name, array in record.items():
        if array.shape != arrays[name].shape:
            raise InputError(f"{of} has {name} of shape {array.shape}, the global model of {arrays[name].shape}")
    missing = {NUM_EXAMPLES, UNIFORM, NUM_STEPS, TRAIN_LOSS} - metrics.keys()
    if missing:
        raise InputError(f"{of} lacks the metrics {', '.join(sorted(missing))}")


def _measure_updates(origin: NDArray[np.float64], replies: list[Message], names: Names) -> tuple[Row, list[Message]]:
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
        if not np.isfinite(norm) or not _others_are_finite(reply.content):
            nonfinite.append(reply)
        elif norm > 0:
            update /= norm
            total += update
            count += 1
    row: Row = {"local/steps": sum(int(number(metrics_of(reply.content), NUM_STEPS)) for reply in replies)}
    if count > 1:
        row["update/cosine"] = float((total @ total - count) / (count * (count - 1)))
    return row, nonfinite


def _others_are_finite(content: RecordDict) -> bool:
    """Return whether what a client sends beside its model, such as control variates, is finite."""
    return len(content) == 2 or all(
        bool(np.isfinite(view(array)).all())
        for name, record in content.items()
        if isinstance(record, ArrayRecord) and name != ARRAYS
        for array in record.values()
    )


def _measure_clients(per_client: list[MetricRecord], aggregated: MetricRecord | None) -> Row:
    """Return the clients' metrics: weighted by the strategy, then mean, spread, 10th percentile and worst of them.

    Those of the global model are named ``clients/...``, those of the clients' own models ``personal/...``.
    """
    assert aggregated is not None
    row: Row = {"clients/evaluated": len(per_client)}
    weights = {NUM_EXAMPLES, UNIFORM}
    for key in aggregated.keys() - weights - {PERSONAL_LOSS, PERSONAL_ACC}:
        row[f"clients/{key}"] = float(number(aggregated, key))
    for key, name, worst, tenth in (
        (EVAL_LOSS, "clients/loss", max, 90),
        (EVAL_ACC, "clients/accuracy", min, 10),
        (PERSONAL_LOSS, "personal/loss", max, 90),
        (PERSONAL_ACC, "personal/accuracy", min, 10),
    ):
        values = [float(number(metrics, key)) for metrics in per_client if key in metrics]
        if values:
            row[f"{name}_mean"] = float(np.mean(values))
            row[f"{name}_std"] = float(np.std(values))
            row[f"{name}_p{tenth}"] = float(np.percentile(values, tenth))
            row[f"{name}_worst"] = worst(values)
    for key, name in ((PERSONAL_LOSS, "eval_loss"), (PERSONAL_ACC, "eval_acc")):
        if key in aggregated:
            row[f"personal/{name}"] = float(number(aggregated, key))
    return row
