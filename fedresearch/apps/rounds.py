"""The round loop: Flower's strategy hooks, one row of numbers a round."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedresearch.apps.averaging import aggregate_train
from fedresearch.apps.cohort import CohortGrid
from fedresearch.apps.records import (
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
)
from fedresearch.local.parts import Names

Row = dict[str, Any]


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
    train_cohort, evaluate_cohort : callable
        The partition ids that train in a round, and that evaluate the new global model. A client that is there twice
        trains once and counts twice in the average.
    evaluate_every : int
        Evaluate in the rounds divisible by this.
    parameters : set of str
        The arrays that are no buffers: whose movement is measured.
    client_config : callable
        The numbers that a round's clients are sent.
    evaluate : callable
        The server's own evaluation of global arrays: numbers named ``eval/...``.
    log : callable
        Given each round's row as the round ends.
    """

    strategy: Strategy
    num_rounds: int
    train_cohort: Callable[[int], Sequence[int]]
    evaluate_cohort: Callable[[int], Sequence[int]]
    evaluate_every: int
    parameters: Names
    client_config: Callable[[int], dict[str, float]]
    evaluate: Callable[[ArrayRecord], Row]
    log: Callable[[Row], None]
    _totals: dict[str, int] = field(default_factory=lambda: {"comm/bytes_down": 0, "comm/bytes_up": 0})

    def run(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Run all rounds from the given global arrays and return the last ones.

        Parameters
        ----------
        grid : Grid
            Where the clients are; its node ids are in partition order.
        arrays : ArrayRecord
            The initial global model.

        Raises
        ------
        RuntimeError
            If a client fails, with its partition id and what it raised.
        """
        started = time.perf_counter()
        for server_round in range(1, self.num_rounds + 1):
            row, arrays = self._round(server_round, grid, arrays)
            row["time/total_s"] = time.perf_counter() - started
            self.log(row)
        return arrays

    def _round(self, server_round: int, grid: Grid, arrays: ArrayRecord) -> tuple[Row, ArrayRecord]:
        started = time.perf_counter()
        row: Row = {"round": server_round}

        config = self._config(server_round)
        row["local/lr"] = float(number(config, LR))
        drawn = Counter(self.train_cohort(server_round))
        cohort = CohortGrid(grid, sorted(drawn))
        messages = list(self.strategy.configure_train(server_round, arrays, config, cohort))
        replies = self._send(cohort, messages, row, "comm/")
        row |= {"clients/sampled": len(messages), "clients/failed": 0}
        origin = flatten(arrays, self.parameters)
        # Before aggregating: some strategies take the replies apart.
        row |= _measure_updates(origin, replies, self.parameters)
        counted = [
            copy.deepcopy(reply) if again else reply
            for reply in replies
            for again in range(drawn[cohort.partition_of(reply.metadata.src_node_id)])
        ]
        aggregated, metrics = aggregate_train(self.strategy, server_round, counted)
        if metrics is not None:
            row["train/loss"] = float(number(metrics, TRAIN_LOSS))
        if aggregated is not None:
            arrays = cast_like(aggregated, arrays)
        row["update/norm"] = float(np.linalg.norm(flatten(arrays, self.parameters) - origin))

        if server_round % self.evaluate_every == 0:
            row |= self.evaluate(arrays)
            cohort = CohortGrid(grid, sorted(self.evaluate_cohort(server_round)))
            if cohort.partition_ids:
                asked = self.strategy.configure_evaluate(server_round, arrays, self._config(server_round), cohort)
                replies = self._send(cohort, asked, row, "comm/evaluate_")
                per_client = [metrics_of(reply.content) for reply in replies]
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

    def _send(self, cohort: CohortGrid, messages: Iterable[Message], row: Row, prefix: str) -> list[Message]:
        """Send messages and return the replies, both in partition order; count their bytes under a prefix."""
        outgoing = sorted(messages, key=lambda message: cohort.partition_of(message.metadata.dst_node_id))
        replies = sorted(
            cohort.send_and_receive(messages=outgoing),
            key=lambda reply: cohort.partition_of(reply.metadata.src_node_id),
        )
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(
                    f"the client of partition {cohort.partition_of(reply.metadata.src_node_id)} failed in round "
                    f"{row['round']}:\n{reply.error.reason}"
                )
        row[f"{prefix}bytes_down"] = count_bytes(outgoing)
        row[f"{prefix}bytes_up"] = count_bytes(replies)
        return replies


def _measure_updates(origin: NDArray[np.float64], replies: list[Message], names: Names) -> Row:
    """Return the local steps, and how far the clients' updates agree: their mean pairwise cosine.

    With unit vectors u_i, the sum over pairs is ``(|sum u_i|^2 - n) / 2``: one vector is kept, not one a client.
    """
    total, update, count = np.zeros_like(origin), np.empty_like(origin), 0
    for reply in replies:
        flatten(arrays_of(reply.content), names, update)
        update -= origin
        norm = np.linalg.norm(update)
        if norm > 0:
            update /= norm
            total += update
            count += 1
    row: Row = {"local/steps": sum(int(number(metrics_of(reply.content), NUM_STEPS)) for reply in replies)}
    if count > 1:
        row["update/cosine"] = float((total @ total - count) / (count * (count - 1)))
    return row


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
