"""Which clients take part in a round: drawn by partition id, from a generator of the round's own."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fedresearch.seeding import Purpose, derive_seed


@dataclass(frozen=True)
class UniformSampling:
    """Uniform sampling without replacement (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    Attributes
    ----------
    eligible : sequence of int
        Partition ids to draw from: those that hold data for the task.
    cohort_size : int
        Clients a round; 0: none. Where fewer are eligible, all of them take part.
    seed : int
        The run's seed.
    purpose : str
        ``"train-sampling"`` or ``"evaluate-sampling"``: neither draw depends on the other.
    """

    eligible: Sequence[int]
    cohort_size: int
    seed: int
    purpose: Purpose

    def cohort(self, server_round: int) -> list[int]:
        """Return a round's partition ids in ascending order."""
        generator = random.Random(derive_seed(self.seed, self.purpose, server_round))
        return sorted(generator.sample(self.eligible, min(self.cohort_size, len(self.eligible))))
