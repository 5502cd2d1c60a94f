"""FCUBE (Li et al. 2022, "Federated Learning on Non-IID Data Silos", arXiv:2102.02079, section IV-B)."""

import random

import numpy as np
import torch

from fedresearch.data.source import Samples, Source


def load(*, seed: int = 0) -> Source:
    """Generate 4,000 training points in a cube, 1,000 for each of four parties, and 1,000 test points.

    A party's points lie in two opposite octants of [-1, 1]^3; the label is 0 where the first coordinate is positive.
    The draws are those of NIID-Bench's ``utils.py`` after ``random.seed(seed)``.

    Parameters
    ----------
    seed : int
        Seed of the points.
    """
    draws = random.Random(seed)
    train = np.array([draws.random() for _ in range(4 * 1000 * 3)]).reshape(4, 1000, 3)
    train[2:, :, 1] *= -1
    train[1::2, :, 2] *= -1
    train[:, 1::2] *= -1
    test = np.array([draws.random() * 2 - 1 for _ in range(1000 * 3)])
    train_x, test_x = (torch.from_numpy(points.reshape(-1, 3)).float() for points in (train, test))
    train_y = torch.arange(2).repeat(2000)
    return Source(
        Samples(train_x, train_y, np.repeat(np.arange(4), 1000)),
        Samples(test_x, (test_x[:, 0] <= 0).long()),
    )
