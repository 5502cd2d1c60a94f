"""The round loop: Flower's strategy hooks, and one row of numbers for each round."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedresearch.channel.stage import Where
from fedresearch.errors import InputError
from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.channel import Channel
from fedresearch.federation.client_table import client_columns, with_updates
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.generators import restored_generators
from fedresearch.federation.hooks import Hooks
from fedresearch.federation.layout import Layout
from fedresearch.federation.measures import (
    Columns,
    Row,
    defined_means,
    measure_clients,
    measure_updates,
    strategy_columns,
)
from fedresearch.federation.records import (
    LR,
    NUM_EXAMPLES,
    NUM_STEPS,
    TRAIN_LOSS,
    UNIFORM,
    cast_like,
    check_arrays,
    metrics_of,
    number,
    sha256,
)
from fedresearch.federation.stack import StackedReplies
from fedresearch.federation.update_sums import distance, rows_at_once
from fedresearch.local.state_names import Names

_TOTALS = ("comm/bytes_down", "comm/bytes_up")
_ZERO_IF_NOBODY_TRAINS = (*_TOTALS, "clients/sampled", "clients/failed", "local/steps")


class ClientsFailed(RuntimeError):
    """More clients failed in a round than ``max_failures`` allows."""


class Diverged(RuntimeError):
    """An update or the global model is not finite."""


class Stalled(RuntimeError):
    """A round trained nothing: its replies have no aggregate, or are fewer than the rule needs."""


@dataclass
class RoundLoop:
    """A federated run, round by round.

    ``Strategy.start`` has neither a callback for each round nor a first round nor an order; this loop calls the same
    four hooks.

    Attributes
    ----------
    hooks : Hooks
        The strategy's hooks. The strategy sees each round's cohort as the whole federation.
    num_rounds : int
        Rounds to run.
    target_accuracy : float or None
        The ``eval/accuracy`` at which the run ends early; None: the run makes all rounds.
    train_cohort, evaluate_cohort : callable
        The partition ids that train in a round, and those that evaluate the new global model. A client that occurs
        twice trains once and counts twice in the average. If nobody trains, the global model stays as it is.
    num_available : callable
        The number of clients that could train in a round.
    evaluate_initial : bool
        Whether the server evaluates the initial model, and logs a row of round 0.
    evaluate_every : int
        Evaluate in the rounds divisible by this, and in the last one.
    parameters : set of str
        The arrays without the buffers, whose change is measured.
    shortage : callable
        Given the number of clients whose replies count in a round: if they are too few, how many the strategy's rule
        needs and why; otherwise "".
    client_config : callable
        The numbers that a round's messages carry.
    evaluate : callable
        The server's own evaluation of global arrays: numbers named ``eval/...``.
    metrics : mapping of str to str
        What clients evaluate besides the loss, to the way that is better: ``up``, ``down`` or ``none``.
    weighted_by : str
        The metric that is a client's weight in means.
    log : callable
        Called with the row and the new global arrays at the end of each round.
    log_clients : callable or None
        Called before that with the round and, of the clients that train and of those that evaluate, the columns of the
        clients' table; None: nothing is measured for this table.
    max_failures : int
        Clients that may fail in a round, in training and in evaluation each.
    nonfinite : str
        How to treat updates with NaN or infinity: ``"stop"`` raises :class:`Diverged`, ``"drop"`` leaves them out,
        ``"keep"`` averages them like the rest.
    log_failure : callable
        Called with the round, the partition id, the activity (``"train"`` or ``"evaluate"``) and the traceback.
    channel : Channel
        What the clients' updates have passed through; by default nothing.
    """

    hooks: Hooks
    num_rounds: int
    target_accuracy: float | None
    train_cohort: Callable[[int], Sequence[int]]
    evaluate_cohort: Callable[[int], Sequence[int]]
    num_available: Callable[[int], int]
    evaluate_initial: bool
    evaluate_every: int
    parameters: Names
    shortage: Callable[[int], str]
    client_config: Callable[[int], dict[str, float]]
    evaluate: Callable[[ArrayRecord], Row]
    metrics: Mapping[str, str]
    weighted_by: str
    log: Callable[[Row, ArrayRecord], None]
    log_clients: Callable[[int, dict[str, Columns]], None] | None
    max_failures: int
    nonfinite: str
    log_failure: Callable[[int, int, str, str], None]
    channel: Channel = field(default_factory=Channel)
    _totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOTALS, 0))
    _layout: Layout | None = None

    @restored_generators()
    def run(self, grid: Grid, arrays: ArrayRecord, last: Row | None = None) -> ArrayRecord:
        """Run the rounds from the given global arrays, or those after the last round, and return the final arrays.

        The global generators of Python, NumPy and torch are restored at the end.

        Parameters
        ----------
        grid : Grid
            The clients' Grid, with its node ids in partition order.
        arrays : ArrayRecord
            The initial global model, or the one after the last round.
        last : dict, optional
            The row of the last round of a run that resumes. The strategy and the clients' states must be those after
            this round.

        Raises
        ------
        ClientsFailed
            If more than ``max_failures`` clients fail; with their partition ids and the first traceback.
        Diverged
            If an update or the global model is not finite and ``nonfinite`` is ``"stop"``.
        Stalled
            If a round trains nothing.
        """
        row = last or {"round": 0, **{f"{key}_total": 0 for key in _TOTALS}}
        self._totals = {key: row[f"{key}_total"] for key in _TOTALS}
        started = time.perf_counter() - row.get("time/total_s", 0.0)
        if last is None and self.evaluate_initial:
            row = {"round": 0, **self.evaluate(arrays), **row, "model/sha256": sha256(arrays)}
            row["time/round_s"] = row["time/total_s"] = time.perf_counter() - started
            self.log(row, arrays)
        while row["round"] < self.num_rounds and not self._reached(row):
            row, arrays = self._round(row["round"] + 1, grid, arrays)
            row["time/total_s"] = time.perf_counter() - started
            self.log(row, arrays)
        return arrays

    def _reached(self, row: Row) -> bool:
        """Return whether a round reached the target; the initial model does not end a run."""
        accuracy = row.get("eval/accuracy", 0.0)
        return row["round"] > 0 and self.target_accuracy is not None and accuracy >= self.target_accuracy

    def _round(self, server_round: int, grid: Grid, arrays: ArrayRecord) -> tuple[Row, ArrayRecord]:
        started = time.perf_counter()
        row: Row = {"round": server_round}
        table: dict[str, Columns] = {}
        arrays = self._train(row, table, grid, arrays)
        if server_round % self.evaluate_every == 0 or server_round == self.num_rounds:
            row |= self.evaluate(arrays)
            self._evaluate_on_clients(row, table, grid, arrays)
        if self.log_clients:
            self.log_clients(server_round, table)
        for key in self._totals:
            self._totals[key] += row[key]
            row[f"{key}_total"] = self._totals[key]
        row["model/sha256"] = sha256(arrays)
        row["time/round_s"] = time.perf_counter() - started
        return row, arrays

    def _train(self, row: Row, table: dict[str, Columns], grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Return the new global arrays, and add the numbers of the training to the row and the clients' table."""
        server_round = row["round"]
        config = self._config(server_round)
        row["local/lr"] = float(number(config, LR))
        row["clients/available"] = self.num_available(server_round)
        drawn = Counter(self.train_cohort(server_round))
        if not drawn:
            row |= {**dict.fromkeys(_ZERO_IF_NOBODY_TRAINS, 0), "update/norm": 0.0}
            if self.nonfinite == "drop":
                row["clients/dropped"] = 0
            return arrays
        cohort = CohortGrid(grid, sorted(drawn))
        messages = self.hooks.configure_train(server_round, arrays, config, cohort)
        row |= {"clients/sampled": len(messages), "clients/failed": 0}
        layout = self._layout = self._layout or Layout(arrays, self.parameters)
        if isinstance(messages, Broadcast):
            messages.layout = layout
            messages.mean_by = self.hooks.mean_by if self._needs_mean_alone(layout, drawn) else None
        replies, columns = self._send(cohort, messages, row, "train")
        places: Sequence[int] = range(len(replies))
        if replies:
            stack = self._stacked(replies, messages, layout, cohort, server_round)
            measured, nonfinite, updates = measure_updates(arrays, stack, to_mean=self.log_clients is not None)
            row |= measured
            table["train"] = with_updates(columns, updates)
            if nonfinite and self.nonfinite == "stop":
                partition_ids = [cohort.partition_of(stack.node_ids[place]) for place in nonfinite]
                raise Diverged(f"the updates of partitions {partition_ids} are not finite in round {server_round}")
            if self.nonfinite == "drop":
                row["clients/dropped"] = len(nonfinite)
                places = [place for place in places if place not in nonfinite]
        self._check_enough(row, len(places))
        counted = [place for place in places for _ in range(drawn[cohort.partition_of(stack.node_ids[place])])]
        aggregated, metrics = self.hooks.aggregate_train(server_round, stack.take(counted))
        if aggregated is None:
            raise Stalled(
                f"round {server_round} trained nothing: the strategy aggregated none of {len(counted)} replies"
            )
        check_arrays("the strategy's aggregate", aggregated, arrays)
        row |= strategy_columns(metrics, "train/", row)
        sent, arrays = arrays, cast_like(aggregated, arrays)
        row["update/norm"] = distance(arrays, sent, self.parameters)
        if self.nonfinite == "stop" and not np.isfinite(row["update/norm"]):
            raise Diverged(f"the global model is not finite after round {server_round}")
        return arrays

    def _needs_mean_alone(self, layout: Layout, drawn: Mapping[int, int]) -> bool:
        """Return whether replies may be forgotten once they are added: they are large, and each counts once."""
        is_certain = self.max_failures == 0 and self.nonfinite != "drop" and max(drawn.values()) == 1
        return is_certain and rows_at_once(layout, len(drawn)) < len(drawn)

    def _stacked(
        self,
        replies: Sequence[Message],
        messages: Sequence[Message],
        layout: Layout,
        cohort: CohortGrid,
        server_round: int,
    ) -> StackedReplies:
        """Return replies as they were before they passed the channel, with the arrays of the global model.

        Raises
        ------
        InputError
            With what differs or is missing.
        """
        if not isinstance(replies, StackedReplies):
            where = [Where(server_round, cohort.partition_of(reply.metadata.src_node_id)) for reply in replies]
            self.channel.decode(replies, messages, where)
        stack = StackedReplies.of(replies, layout, cohort.name_of)
        if missing := {NUM_EXAMPLES, UNIFORM, NUM_STEPS, TRAIN_LOSS} - stack.metrics.keys():
            first = cohort.name_of(stack.node_ids[0])
            raise InputError(f"the metrics {', '.join(sorted(missing))} are missing in the reply of {first}")
        return stack

    def _check_enough(self, row: Row, num_counting: int) -> None:
        """Refuse to aggregate the replies of fewer clients than the rule needs, or of none.

        Raises
        ------
        Stalled
            With the numbers of clients that count, and of those that do not and why.
        """
        needed = self.shortage(num_counting) if num_counting else "a round needs a client"
        if needed:
            losses = {"failed": "failed", "dropped": "not finite, for which a smaller optimizer.lr may help"}
            lost = [f"{row[f'clients/{key}']} {why}" for key, why in losses.items() if row.get(f"clients/{key}")]
            because = f" ({', '.join(lost)})" if lost else ""
            raise Stalled(
                f"round {row['round']} trained nothing: {needed}, got the replies of {num_counting} of "
                f"{row['clients/sampled']}{because}"
            )

    def _evaluate_on_clients(self, row: Row, table: dict[str, Columns], grid: Grid, arrays: ArrayRecord) -> None:
        """Add the clients' evaluations of the global arrays, and of their own models, to the row and the table."""
        server_round = row["round"]
        cohort = CohortGrid(grid, sorted(set(self.evaluate_cohort(server_round))))
        replies: Sequence[Message] = []
        if cohort.partition_ids:
            messages = self.hooks.configure_evaluate(server_round, arrays, self._config(server_round), cohort)
            replies, table["evaluate"] = self._send(cohort, messages, row, "evaluate")
        per_client = [metrics_of(reply.content) for reply in replies]
        row |= measure_clients(per_client, self.metrics)
        if replies:
            row |= strategy_columns(self.hooks.aggregate_evaluate(server_round, replies), "clients/", row)
            row |= defined_means(per_client, self.metrics, self.weighted_by)

    def _config(self, server_round: int) -> ConfigRecord:
        # A new record each time: strategies write into it.
        return ConfigRecord(dict(self.client_config(server_round)))

    def _send(
        self, cohort: CohortGrid, messages: Sequence[Message], row: Row, doing: str
    ) -> tuple[Sequence[Message], Columns]:
        """Send messages and return the replies in partition order, and the clients' columns; count bytes in the row.

        Clients that fail are reported and counted, and have no reply.
        """
        answers: Any = cohort.send_and_receive(messages=messages)
        if isinstance(answers, StackedReplies):
            self._report_failures(cohort, answers.errors, row, doing)
        else:
            answers = sorted(answers, key=lambda answer: cohort.partition_of(answer.metadata.src_node_id))
            self._report_failures(cohort, answers, row, doing)
        columns = client_columns(cohort, messages, answers, doing)
        row |= {name: sum(values) for name, values in columns.items() if name.startswith("comm/")}
        if not isinstance(answers, StackedReplies):
            answers = [answer for answer in answers if not answer.has_error()]
        return answers, columns

    def _report_failures(self, cohort: CohortGrid, answers: Sequence[Message], row: Row, doing: str) -> None:
        """Report and count the clients that failed.

        Raises
        ------
        ClientsFailed
            If they are too many.
        """
        failed = [(cohort.partition_of(a.metadata.src_node_id), str(a.error.reason)) for a in answers if a.has_error()]
        for partition_id, reason in failed:
            self.log_failure(row["round"], partition_id, doing, reason)
        if len(failed) > self.max_failures:
            partition_ids = ", ".join(str(partition_id) for partition_id, _ in failed)
            plural = "s" if len(failed) > 1 else ""
            raise ClientsFailed(
                f"the client{plural} of partition{plural} {partition_ids} failed in round {row['round']}:\n"
                f"{failed[0][1]}"
            )
        row["clients/failed"] += len(failed)
