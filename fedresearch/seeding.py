"""Seeds as a function of what they are for and where, and not of what ran before.

:func:`derive_seed` seeds every generator of a run from the run's seed, the purpose of the numbers, and the place (the
round, the partition). So nothing that runs earlier or elsewhere can change a random number.
"""

import hashlib
from typing import Literal

Purpose = Literal[
    "dataset",
    "initial-weights",
    "partition",
    "validation",
    "train-sampling",
    "evaluate-sampling",
    "availability",
    "batches",
    "dropout",
    "local-update",
    "encode",
    "decode",
    "transforms",
    "evaluate",
    "strategy",
    "configure-train",
    "aggregate-train",
    "configure-evaluate",
    "aggregate-evaluate",
    "app-import",
    "server-app",
    "client-app",
]


def derive_seed(seed: int, purpose: Purpose, *where: int) -> int:
    """Return the seed, in [0, 2**63), of one generator.

    Parameters
    ----------
    seed : int
        The run's seed.
    purpose : str
        What the random numbers are for. Two purposes never share a stream.
    *where : int
        Which generator of this purpose: ``server_round``, then ``partition_id``, where they apply.
    """
    key = "/".join(map(str, (seed, purpose, *where)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


class Seeds:
    """The seeds of one place: called with a purpose, the seed of its generator. One that nobody asks for takes no time.

    Parameters
    ----------
    seed : int
        The run's seed.
    *where : int
        The place.
    """

    __slots__ = "_seed", "_where"

    def __init__(self, seed: int, *where: int) -> None:
        self._seed, self._where = seed, where

    def __call__(self, purpose: Purpose) -> int:
        """Return the seed of a generator."""
        return derive_seed(self._seed, purpose, *self._where)
