"""MNIST-1D (Greydanus and Kobak 2024, arXiv:2011.14439): ten digit-like curves, shifted, scaled and noisy."""

import random

import numpy as np
import torch
from mnist1d.data import get_dataset_args, make_dataset

from fedresearch.data.source import Samples, Source


def load(*, seed: int = 42) -> Source:
    """Generate 4,000 training and 1,000 test curves of 40 points.

    Parameters
    ----------
    seed : int
        Seed of the curves; 42 gives the published ones.
    """
    args = get_dataset_args()
    args.seed = seed
    # The package seeds the global generators and draws from them.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        made = make_dataset(args)
    random.setstate(python_state)
    np.random.set_state(numpy_state)

    def samples(suffix: str) -> Samples:
        return Samples(torch.from_numpy(made[f"x{suffix}"]).float(), torch.from_numpy(made[f"y{suffix}"]).long())

    return Source(samples(""), samples("_test"))
