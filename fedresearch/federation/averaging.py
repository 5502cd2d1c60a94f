"""The aggregation of a round's replies by a strategy."""

from collections.abc import Sequence
from typing import TypeGuard

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedresearch.federation.records import array_record
from fedresearch.federation.replies import Replies
from fedresearch.federation.stack import StackedReplies
from fedresearch.inherited import inherits


def mean_by(strategy: Strategy) -> str | None:
    """Return the metric that is a client's weight, if a strategy reads nothing but the means of replies; else None."""
    if _is_mean(strategy) and strategy.train_metrics_aggr_fn is aggregate_metricrecords:
        return strategy.weighted_by_key
    return None


def sends_to_all(strategy: Strategy) -> bool:
    """Return whether a strategy only sends the model and its config to the whole cohort, as FedAvg does."""
    return (
        isinstance(strategy, FedAvg)
        and inherits(strategy, FedAvg, "configure_train", "_construct_messages")
        and strategy.fraction_train == 1
    )


def _is_mean(strategy: Strategy) -> TypeGuard[FedAvg]:
    return isinstance(strategy, FedAvg) and inherits(strategy, FedAvg, "aggregate_train", "_check_and_log_replies")


def aggregate_train(
    strategy: Strategy, server_round: int, replies: Sequence[Message]
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Aggregate replies without errors by a strategy; the mean of Flower's FedAvg is computed here, the same bits."""
    if _is_mean(strategy) and isinstance(replies, StackedReplies) and not replies.sent:
        found = Replies(replies, strategy.weighted_by_key)
        return array_record(found.mean_params(), copy=False), found.aggregate_metrics(strategy.train_metrics_aggr_fn)
    return strategy.aggregate_train(server_round, replies)
