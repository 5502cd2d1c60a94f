"""The clients' learning rate in each round: functions of ``lr``, that of the first round, and the round, from 1."""

import math


def constant(*, lr: float, server_round: int, num_rounds: int) -> float:
    """Return ``lr`` in every round."""
    return lr


def step(*, lr: float, server_round: int, num_rounds: int, step_size: int, gamma: float) -> float:
    """Return ``lr * gamma^floor((r - 1) / step_size)``: multiplied by gamma every ``step_size`` rounds."""
    return lr * gamma ** ((server_round - 1) // step_size)


def cosine(*, lr: float, server_round: int, num_rounds: int, min_lr: float) -> float:
    """Return half a cosine from ``lr`` to ``min_lr``, which the round after the last one would have.

    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (server_round - 1) / num_rounds)) / 2


def inverse(*, lr: float, server_round: int, num_rounds: int) -> float:
    """Return ``lr / r``."""
    return lr / server_round
