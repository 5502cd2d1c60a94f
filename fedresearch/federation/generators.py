"""The global generators of Python, NumPy and torch, from which foreign code draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the global generators, including torch's on all devices, at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global generators, including torch's on all devices, and restore them at the end.

    Parameters
    ----------
    seed : int
        In [0, 2**63), as :func:`fedresearch.seeding.derive_seed` returns it.
    """
    with restored_generators():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Without a GPU, torch.manual_seed formats a stack trace each time, to seed a GPU later.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        yield
