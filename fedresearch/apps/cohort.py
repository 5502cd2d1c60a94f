"""A round's clients, seen as a Grid of their own."""

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedresearch.apps.flower import Run


class CohortGrid(Grid):
    """A Grid on which only a round's cohort is connected.

    Flower's strategies sample from the connected nodes with Python's global generator. Shown just the cohort that was
    drawn for the round, they have nothing left to choose.

    Parameters
    ----------
    grid : Grid
        The whole federation, its node ids in partition order.
    partition_ids : sequence of int
        Who takes part.
    """

    def __init__(self, grid: Grid, partition_ids: Sequence[int]) -> None:
        self.partition_ids = partition_ids
        self._grid = grid
        node_ids = grid.get_node_ids()
        node_ids = node_ids if isinstance(node_ids, Sequence) else list(node_ids)
        self._partition_of = {node_ids[partition_id]: partition_id for partition_id in partition_ids}

    def partition_of(self, node_id: int) -> int:
        """Return the partition of a node of the cohort."""
        return self._partition_of[node_id]

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort's node ids in partition order."""
        return list(self._partition_of)

    def set_run(self, run: Run) -> None:
        """Pass on to the whole Grid, as all that follows."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Return the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
