"""A round's clients, seen as a Grid of their own."""

import random
from collections.abc import Sequence

from flwr.serverapp import Grid

from fedresearch.federation.delegating_grid import DelegatingGrid


class CohortGrid(DelegatingGrid):
    """A Grid on which only a round's cohort is connected.

    Flower's strategies wait for, and sample from, the connected nodes. Shown just the cohort that was drawn for the
    round, they have nothing left to wait for or to choose.

    Parameters
    ----------
    grid : Grid
        The whole federation, its node ids in partition order.
    partition_ids : sequence of int
        Who takes part.
    """

    def __init__(self, grid: Grid, partition_ids: Sequence[int]) -> None:
        self.partition_ids = partition_ids
        super().__init__(grid)
        node_ids = grid.get_node_ids()
        node_ids = node_ids if isinstance(node_ids, Sequence) else list(node_ids)
        self._partition_of = {node_ids[partition_id]: partition_id for partition_id in partition_ids}

    def partition_of(self, node_id: int) -> int:
        """Return the partition of a node of the cohort."""
        return self._partition_of[node_id]

    def get_node_ids(self) -> list[int]:
        """Return the cohort's node ids in partition order."""
        return list(self._partition_of)

    def sample_nodes(self, min_available_nodes: int, sample_size: int) -> tuple[list[int], list[int]]:
        """Return the nodes that a strategy addresses, and all of the cohort, both in partition order.

        A strategy that asks for as many as there are, or for more, has all of them. One that asks for fewer has them
        drawn from Python's global generator.
        """
        node_ids = self.get_node_ids()
        chosen = set(random.sample(node_ids, min(sample_size, len(node_ids))))
        return [node_id for node_id in node_ids if node_id in chosen], node_ids
