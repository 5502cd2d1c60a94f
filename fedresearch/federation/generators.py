"""The global generators of Python, NumPy and torch, from which foreign code draws."""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_has_accelerator = functools.cache(torch.accelerator.is_available)
# Whether a block around the current one restores the generators.
_are_restored_later = False


@contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the global generators, including torch's on all devices, at the end.

    Blocks of :func:`seeded_generators` directly within it leave this to it, for it takes as long as many small clients
    train.
    """
    global _are_restored_later
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    before, _are_restored_later = _are_restored_later, True
    try:
        yield
    finally:
        _are_restored_later = before
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
    global _are_restored_later
    if not _are_restored_later:
        with restored_generators(), seeded_generators(seed):
            yield
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Without a GPU, torch.manual_seed formats a stack trace each time, to seed a GPU later.
    (torch.manual_seed if _has_accelerator() else torch.default_generator.manual_seed)(seed)
    _are_restored_later = False  # for whoever draws in the block draws on after a block within it
    try:
        yield
    finally:
        _are_restored_later = True
