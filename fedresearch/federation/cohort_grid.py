"""A round's cohort as a Grid."""

import random
from collections.abc import Sequence

from flwr.serverapp import Grid

from fedresearch.federation.delegating_grid import DelegatingGrid


class CohortGrid(DelegatingGrid):
    """A Grid with only a round's cohort connected.

    Flower's strategies wait for the connected nodes and sample from them. On this Grid they find exactly the cohort
    that was drawn for the round: they neither wait nor choose.

    Parameters
    ----------
    grid : Grid
        The whole federation, with its node ids in partition order.
    partition_ids : sequence of int
        The cohort.
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

    def name_of(self, node_id: int) -> str:
        """Return what a message calls a node: its partition."""
        return f"partition {self._partition_of[node_id]}"

    def get_node_ids(self) -> list[int]:
        """Return the cohort's node ids in partition order."""
        return list(self._partition_of)

    def sample_nodes(self, min_available_nodes: int, sample_size: int) -> tuple[list[int], list[int]]:
        """Return the nodes that a strategy addresses, and the whole cohort, both in partition order.

        A strategy that requests the size of the cohort or more gets the whole cohort. For one that requests fewer, they
        are drawn from Python's global generator.
        """
        node_ids = self.get_node_ids()
        if sample_size >= len(node_ids):
            return node_ids, node_ids
        chosen = set(random.sample(node_ids, sample_size))
        return [node_id for node_id in node_ids if node_id in chosen], node_ids
