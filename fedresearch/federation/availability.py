"""Which clients are there in a round, and which part of their work they do: functions of a client and a round.

A function's options are the arguments in its YAML file. It receives ``partition_id``, ``server_round`` (from 1) and
``seed``, this client's own in this round, from which all its draws must come. It returns a share: 0 if the client is
away, 1 if it does all of its local work, between if it does a part. The server and the client both call it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fedresearch.seeding import derive_seed


def always(*, partition_id: int, server_round: int, seed: int) -> float:
    """Return 1."""
    return 1.0


def bernoulli(*, partition_id: int, server_round: int, seed: int, probability: float) -> float:
    """Return 1 with a probability and 0 otherwise."""
    return float(random.Random(seed).random() < probability)


def stragglers(*, partition_id: int, server_round: int, seed: int, fraction: float, epochs: int | None) -> float:
    """Return 1, or the part that a straggler does: a number of epochs drawn uniformly from 1 to all.

    Li et al. 2020 (FedProx), arXiv:1812.06127, Section 5.2. There, exactly a fraction of each cohort are stragglers;
    here, each client is one with this probability.

    Parameters
    ----------
    partition_id, server_round, seed
        As for all functions.
    fraction : float
        The probability that a client is a straggler, in each round.
    epochs : int or None
        All local epochs; None: the clients' work is a number of steps, and a straggler does any number of them.
    """
    generator = random.Random(seed)
    if generator.random() >= fraction:
        return 1.0
    return 1 - generator.random() if epochs is None else generator.randint(1, epochs) / epochs


@dataclass(frozen=True)
class Availability:
    """Each client's share of its work in each round of one run.

    Attributes
    ----------
    function : callable
        A function such as those above.
    seed : int
        The run's seed.
    """

    function: "partial[float]"
    seed: int

    def __call__(self, server_round: int, partition_id: int) -> float:
        """Return a client's share in a round.

        Raises
        ------
        ValueError
            If it is not from 0 to 1.
        """
        if self.is_always:
            return 1.0
        seed = derive_seed(self.seed, "availability", server_round, partition_id)
        share = self.function(partition_id=partition_id, server_round=server_round, seed=seed)
        if not 0 <= share <= 1:
            raise ValueError(
                f"a client's share of its work must be from 0 to 1, got {share} for partition {partition_id} in round "
                f"{server_round}"
            )
        return share

    def present(self, server_round: int, partition_ids: Sequence[int]) -> Sequence[int]:
        """Return those of the clients that are there in a round."""
        if self.is_always:
            return partition_ids
        return [partition_id for partition_id in partition_ids if self(server_round, partition_id)]

    @property
    def is_always(self) -> bool:
        """Whether all clients do all of their work; there may be millions, and a seed takes its time."""
        return self.function.func is always


ALWAYS = Availability(partial(always), seed=0)
