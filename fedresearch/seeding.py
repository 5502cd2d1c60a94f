"""Who gets which seed: randomness as a function of where it is used, not of what ran before.

Every generator of a run is seeded by :func:`derive_seed` from the run's seed, what the numbers are for, and where (the
round, the partition). So nothing that runs earlier, elsewhere or not at all can change a draw.
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
    "batches",
    "dropout",
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
        What the draws are for. Purposes never share a stream.
    *where : int
        Which of the generators of this purpose: ``server_round``, then ``partition_id``, where they apply.
    """
    key = "/".join(map(str, (seed, purpose, *where)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
