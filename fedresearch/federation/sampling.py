"""Which clients train in a round: schemes that draw partition ids from the round's own seed.

A scheme is a function; its options are the arguments in its YAML file. All schemes receive:

sizes : sequence of int
    Training samples of each partition.
eligible : sequence of int
    The partitions with training samples, in order: only these can be drawn.
cohort_size : int
    Clients in a round, from ``federation.fraction_train``.
server_round : int
    From 1.
seed : int
    The round's own seed. The global generators are seeded with it too.

They return partition ids. A client that occurs twice counts twice in the average, but once for a rule that scores
clients, such as Krum, for which two copies would be each other's nearest. Clients that evaluate are always drawn
uniformly.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedresearch.federation.generators import seeded_generators
from fedresearch.seeding import Purpose, derive_seed


@dataclass(frozen=True)
class Sampling:
    """A scheme for one federation: from a round to its partition ids.

    Attributes
    ----------
    scheme : callable
        A function such as those below.
    sizes, cohort_size
        Its arguments.
    seed : int
        The run's seed.
    purpose : str
        ``"train-sampling"`` or ``"evaluate-sampling"``: neither draw depends on the other.
    """

    scheme: Callable[..., Sequence[int]]
    sizes: Sequence[int]
    cohort_size: int
    seed: int
    purpose: Purpose

    def __call__(self, server_round: int) -> Sequence[int]:
        """Return a round's partition ids.

        Raises
        ------
        ValueError
            If one of them does not exist or holds no training data, or if the result is empty though the cohort's size
            is not 0.
        """
        seed = derive_seed(self.seed, self.purpose, server_round)
        with seeded_generators(seed):
            drawn = self.scheme(
                sizes=self.sizes,
                eligible=self._eligible,
                cohort_size=self.cohort_size,
                server_round=server_round,
                seed=seed,
            )
        wrong = [i for i in drawn if i not in range(len(self.sizes)) or not self.sizes[i]]
        if wrong:
            raise ValueError(
                f"partition ids must be from 0 to {len(self.sizes) - 1} and hold training data, got {wrong}"
            )
        if self.cohort_size and not drawn and self._eligible:
            raise ValueError(
                f"no client trains in round {server_round}; the scheme must return at least one partition id"
            )
        return drawn

    @cached_property
    def _eligible(self) -> list[int]:
        return [i for i, size in enumerate(self.sizes) if size]


def uniform(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Draw uniformly without replacement (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    If fewer clients hold data than the cohort's size, all of them take part.
    """
    return random.Random(seed).sample(eligible, min(cohort_size, len(eligible)))


def proportional(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Draw with replacement, with probabilities proportional to the clients' numbers of examples.

    With a plain mean, this is Scheme I of Li et al. 2020, "On the Convergence of FedAvg on Non-IID Data",
    arXiv:1907.02189.
    """
    return random.Random(seed).choices(range(len(sizes)), weights=sizes, k=cohort_size)


def fixed(
    *,
    sizes: Sequence[int],
    eligible: Sequence[int],
    cohort_size: int,
    server_round: int,
    seed: int,
    partition_ids: Sequence[int],
) -> list[int]:
    """Return the same clients in every round, whatever the size of the cohort."""
    return list(partition_ids)


def round_robin(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Return the next clients in partition order; the first one follows the last."""
    start = (server_round - 1) * cohort_size
    return [eligible[i % len(eligible)] for i in range(start, start + min(cohort_size, len(eligible)))]
