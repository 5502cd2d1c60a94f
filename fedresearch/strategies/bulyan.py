"""Bulyan (El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium", arXiv:1802.07927).

Of n >= 4f + 3 clients, f may be malicious. Krum chooses one model, then one of those that are left, until it has chosen
theta = n - 2f. Each coordinate of the result is the mean of the beta = theta - 2f chosen values that are closest to the
median of the chosen. The paper builds on any rule like Krum.

For the last choices fewer than f + 4 models may be left; a score is then the distance to the closest other. Where theta
is even, the paper lets either of the two middle values be the median; here, as in Flower, it is their mean.
Flower's Bulyan (``strategy=bulyan_flower``) calls Multi-Krum once for all theta.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.strategies.krum import scores, squared_distances
from fedresearch.strategies.robust import Block, RobustRule, by_coordinate
from fedresearch.strategies.server import Params


class Bulyan(RobustRule):
    """The server.

    Parameters
    ----------
    num_malicious_nodes : int
        f.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, num_malicious_nodes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_malicious_nodes = num_malicious_nodes

    @property
    def min_models(self) -> int:
        """The paper's 4f + 3."""
        return 4 * self.num_malicious_nodes + 3

    def combine(self, models: Params) -> Params:
        """Return the mean of what is closest to the median of the chosen."""
        distances = squared_distances(models)
        theta = len(distances) - 2 * self.num_malicious_nodes
        chosen = choose(distances, theta, self.num_malicious_nodes)
        beta = theta - 2 * self.num_malicious_nodes
        return by_coordinate(lambda block: near_median(block[chosen], beta), models)


def choose(distances: NDArray[np.float64], theta: int, num_malicious: int) -> list[int]:
    """Return the models that Krum chooses, one after another of those that are left, from their squared distances."""
    left, chosen = list(range(len(distances))), []
    for _ in range(theta):
        best = int(np.argmin(scores(distances[np.ix_(left, left)], num_malicious)))
        chosen.append(left.pop(best))
    return chosen


def near_median(values: Block, beta: int) -> NDArray[np.float64]:
    """Return, for each column, the mean of the beta values that are closest to the column's median."""
    distances = np.abs(values - np.median(values, axis=0))
    closest = np.argsort(distances, axis=0, kind="stable")[:beta]
    return np.take_along_axis(values, closest, axis=0).mean(axis=0)
