"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries", arXiv:1703.02757, Section 4).

Of n clients, f may be malicious. With V_i the update of client i, its score is ::

    s(i) = sum_{i -> j} |V_i - V_j|^2

over the n - f - 2 other clients j with the closest updates. Krum takes the update with the least score, Multi-Krum the
plain mean of the m with the least; of equal scores, the first client's.

An update is the client's model minus the model it received, which cancels in a difference of two: so the distances are
those of the models, taken directly and in double precision. Flower's Krum expands them, ``|a|^2 + |b|^2 - 2 a b``, in
the models' precision, so that rounding decides where updates are small against weights. Its Multi-Krum weighs by
examples, which a malicious client may invent.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from fedresearch.strategies.robust import RobustRule, blocks, by_coordinate
from fedresearch.strategies.server import Params


class MultiKrum(RobustRule):
    """The server.

    Parameters
    ----------
    num_malicious_nodes : int
        f.
    num_nodes_to_select : int
        m; 1 is Krum.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, num_malicious_nodes: int, num_nodes_to_select: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_malicious_nodes, self.num_nodes_to_select = num_malicious_nodes, num_nodes_to_select

    @property
    def min_models(self) -> int:
        """The paper's 2f + 3, and m."""
        return max(2 * self.num_malicious_nodes + 3, self.num_nodes_to_select)

    def combine(self, models: Params) -> Params:
        """Return the mean of the models with the least scores."""
        of_clients = scores(squared_distances(models), self.num_malicious_nodes)
        least = np.argsort(of_clients, kind="stable")[: self.num_nodes_to_select]
        return by_coordinate(lambda block: block[least].mean(axis=0), models)


class Krum(MultiKrum):
    """The server.

    Parameters
    ----------
    num_malicious_nodes : int
        f.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, num_malicious_nodes: int, **options: Any) -> None:
        super().__init__(num_malicious_nodes=num_malicious_nodes, num_nodes_to_select=1, **options)


def squared_distances(models: Params) -> NDArray[np.float64]:
    """Return the squared distance of each two models, ``(n, n)``; infinity where it is not a number."""
    pairs = sum(pdist(block, "sqeuclidean") for of_models in models.values() for block in blocks(of_models))
    return squareform(np.nan_to_num(pairs, nan=np.inf, posinf=np.inf))


def scores(distances: NDArray[np.float64], num_malicious: int) -> NDArray[np.float64]:
    """Return Krum's scores of n models from their squared distances: the sums over the n - f - 2 closest others.

    Where fewer remain, as in Bulyan's last choices, over the closest one.
    """
    n = len(distances)
    others = distances[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return np.sort(others, axis=1)[:, : max(1, n - num_malicious - 2)].sum(axis=1)
