"""The hooks of a strategy, as the round loop calls them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedresearch.errors import InputError
from fedresearch.federation.averaging import aggregate_train, mean_by, sends_to_all
from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.generators import seeded_generators
from fedresearch.seeding import Purpose, derive_seed

# The numbers of nodes for which Flower's strategies wait.
_MINIMA = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")


def nested_strategies(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy and all strategies that it wraps."""
    yield strategy
    for value in [*vars(strategy).values()]:
        if isinstance(value, Strategy):
            yield from nested_strategies(value)


def disable_waiting(strategy: Strategy) -> None:
    """Set the minima of a strategy and of those that it wraps to one node: the cohort is drawn beforehand."""
    for part in nested_strategies(strategy):
        for name in vars(part).keys() & set(_MINIMA):
            setattr(part, name, 1)


class Hooks:
    """The four hooks of a strategy; each call that may draw has its own seeded global generators.

    A strategy may draw from the global generators of Python, NumPy and torch, as Flower's wrappers for differential
    privacy do. Its draws are a function of the seed, the hook and the round, on any hardware and after any history.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    seed : int
        The run's seed.
    """

    def __init__(self, strategy: Strategy, seed: int) -> None:
        self._strategy, self._seed = strategy, seed

    @property
    def mean_by(self) -> str | None:
        """The clients' weight, if the strategy reads nothing but the means of their replies; else None."""
        return mean_by(self._strategy)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, cohort: CohortGrid
    ) -> Sequence[Message]:
        """Return the messages to the clients that train, in partition order."""
        with self._seeded("configure-train", server_round, draws=not sends_to_all(self._strategy)):
            messages = self._strategy.configure_train(server_round, arrays, config, cohort)
            return _to_cohort("configure_train", messages, cohort)

    def aggregate_train(
        self, server_round: int, replies: Sequence[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global arrays, or None if the strategy returns None, and its metrics."""
        with self._seeded("aggregate-train", server_round, draws=self.mean_by is None):
            returned = aggregate_train(self._strategy, server_round, replies)
        match returned:
            case (ArrayRecord() | None as arrays, MetricRecord() | None as metrics):
                return arrays, metrics
        raise _refusal("aggregate_train", "an ArrayRecord or None, and a MetricRecord or None", returned)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, cohort: CohortGrid
    ) -> Sequence[Message]:
        """Return the messages to the clients that evaluate, in partition order."""
        with self._seeded("configure-evaluate", server_round):
            messages = self._strategy.configure_evaluate(server_round, arrays, config, cohort)
            return _to_cohort("configure_evaluate", messages, cohort)

    def aggregate_evaluate(self, server_round: int, replies: Sequence[Message]) -> MetricRecord | None:
        """Return the strategy's metrics of an evaluation, or None."""
        with self._seeded("aggregate-evaluate", server_round):
            metrics = self._strategy.aggregate_evaluate(server_round, replies)
        if not isinstance(metrics, MetricRecord | None):
            raise _refusal("aggregate_evaluate", "a MetricRecord or None", metrics)
        return metrics

    def _seeded(self, hook: Purpose, server_round: int, draws: bool = True) -> AbstractContextManager[None]:
        """Seed the global generators for a hook that may draw, which takes as long as a small client trains."""
        return seeded_generators(derive_seed(self._seed, hook, server_round)) if draws else nullcontext()


def _to_cohort(hook: str, messages: Iterable[Message], cohort: CohortGrid) -> Sequence[Message]:
    """Return a hook's messages in partition order.

    Raises
    ------
    InputError
        If the hook returns another type, or a message to a node outside the cohort.
    """
    if isinstance(messages, Broadcast) and messages.node_ids == cohort.get_node_ids():
        return messages
    listed = list(messages) if isinstance(messages, Iterable) else [messages]
    node_ids = set(cohort.get_node_ids())
    for message in listed:
        if not isinstance(message, Message):
            raise _refusal(hook, "messages", message)
        if message.metadata.dst_node_id not in node_ids:
            raise InputError(
                f"the strategy's {hook} addresses node {message.metadata.dst_node_id}, which is not in this round's "
                "cohort; it may address the nodes of grid.get_node_ids()"
            )
    return sorted(listed, key=lambda message: cohort.partition_of(message.metadata.dst_node_id))


def _refusal(hook: str, allowed: str, returned: object) -> InputError:
    return InputError(f"the strategy's {hook} must return {allowed}, got {type(returned).__name__}")
