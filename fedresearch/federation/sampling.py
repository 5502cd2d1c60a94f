"""Which clients train or evaluate in a round: schemes that draw partition ids from the round's own seed.

A scheme is a function; its options are the arguments in its YAML file. All schemes receive:

sizes : sequence of int
    Each partition's samples to train or evaluate on.
eligible : sequence of int
    The partitions with samples whose clients are there, in order and never empty.
cohort_size : int
    Clients in a round, from ``federation.fraction_train`` or ``federation.fraction_evaluate``.
server_round : int
    From 1.
seed : int
    The round's own seed. The global generators are seeded with it too.

They return partition ids, of which those who are away are left out. A client that occurs twice counts twice in the
average, but once for a rule that scores clients, such as Krum, for which two copies would be each other's nearest, and
once in an evaluation.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from fedresearch.federation.availability import ALWAYS, Availability
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
    availability : Availability
        Who is there.
    """

    scheme: Callable[..., Sequence[int]]
    sizes: Sequence[int]
    cohort_size: int
    seed: int
    purpose: Purpose
    availability: Availability = ALWAYS

    def eligible(self, server_round: int) -> Sequence[int]:
        """Return the partitions with samples whose clients are there in a round; each round asks twice."""
        return self._present(server_round)

    def __call__(self, server_round: int) -> Sequence[int]:
        """Return a round's partition ids; none if the cohort's size is 0, or if nobody is there.

        Raises
        ------
        ValueError
            If the scheme returns a partition that does not exist or holds no samples, or none.
        """
        eligible = self.eligible(server_round)
        if not eligible or not self.cohort_size:
            return []
        seed = derive_seed(self.seed, self.purpose, server_round)
        with nullcontext() if self._draws_by_seed else seeded_generators(seed):
            drawn = self.scheme(
                sizes=self.sizes,
                eligible=eligible,
                cohort_size=self.cohort_size,
                server_round=server_round,
                seed=seed,
            )
        partition_ids = range(len(self.sizes))
        wrong = [i for i in drawn if i not in partition_ids or not self.sizes[i]]
        does, what = ("trains", "training") if self.purpose == "train-sampling" else ("evaluates", "validation")
        if wrong:
            raise ValueError(f"partition ids must be from 0 to {len(self.sizes) - 1} and hold {what} data, got {wrong}")
        if not drawn:
            raise ValueError(
                f"no client {does} in round {server_round}; the scheme must return at least one partition id"
            )
        if len(eligible) == len(self._with_samples):
            return drawn
        there = set(eligible)
        return [i for i in drawn if i in there]

    @cached_property
    def _present(self) -> Callable[[int], Sequence[int]]:
        return lru_cache(maxsize=1)(partial(self.availability.present, partition_ids=self._with_samples))

    @cached_property
    def _draws_by_seed(self) -> bool:
        """Whether the scheme is one of those below, which need no global generators."""
        return bool(getattr(self.scheme, "func", self.scheme).__module__ == __name__)

    @cached_property
    def _with_samples(self) -> list[int]:
        return [i for i, size in enumerate(self.sizes) if size]


def uniform(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Draw uniformly without replacement (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    If fewer clients are eligible than the cohort's size, all of them take part.
    """
    return random.Random(seed).sample(eligible, min(cohort_size, len(eligible)))


def proportional(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Draw with replacement, with probabilities proportional to the clients' numbers of examples.

    With a plain mean, this is Scheme I of Li et al. 2020, "On the Convergence of FedAvg on Non-IID Data",
    arXiv:1907.02189.
    """
    return random.Random(seed).choices(eligible, weights=[sizes[i] for i in eligible], k=cohort_size)


def fixed(
    *,
    sizes: Sequence[int],
    eligible: Sequence[int],
    cohort_size: int,
    server_round: int,
    seed: int,
    partition_ids: Sequence[int],
) -> list[int]:
    """Return the same clients in every round, whatever the size of the cohort. Those who are away are left out."""
    return list(partition_ids)


def round_robin(
    *, sizes: Sequence[int], eligible: Sequence[int], cohort_size: int, server_round: int, seed: int
) -> list[int]:
    """Return the next clients in the partition order of those who are there; the first one follows the last."""
    start = (server_round - 1) * cohort_size
    return [eligible[i % len(eligible)] for i in range(start, start + min(cohort_size, len(eligible)))]
