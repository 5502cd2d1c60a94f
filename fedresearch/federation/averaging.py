"""The aggregation of a round's replies by a strategy."""

from collections.abc import Sequence

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from fedresearch.federation.records import array_record
from fedresearch.federation.replies import Replies
from fedresearch.federation.stack import StackedReplies


def aggregate_train(
    strategy: Strategy, server_round: int, replies: Sequence[Message]
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Aggregate replies without errors by a strategy; the mean of Flower's FedAvg is computed here, the same bits."""
    if (
        isinstance(strategy, FedAvg)
        and type(strategy).aggregate_train is FedAvg.aggregate_train
        and isinstance(replies, StackedReplies)
        and not replies.sent
    ):
        found = Replies(replies, strategy.weighted_by_key)
        return array_record(found.mean_params()), found.aggregate_metrics(strategy.train_metrics_aggr_fn)
    return strategy.aggregate_train(server_round, replies)
