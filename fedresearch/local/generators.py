"""The global generators, seeded for one client: models, and maybe transforms, draw from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_for_client(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators for one client, and restore torch's generator of a device at the end.

    The caller restores Python's and NumPy's once for all clients: this takes longer than a small client's training.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if device.type == "cpu":
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 100 us, since it visits all devices
        try:
            yield
        finally:
            torch.default_generator.set_state(state)
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type):
            torch.manual_seed(seed)
            yield


class Drawn(ValueError):
    """Something draws from a global generator, and would not draw a client's own numbers."""


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Raise at the end if something has drawn from a global generator.

    Raises
    ------
    Drawn
        With its library.
    """
    before = _states()
    yield
    for name, state in _states().items():
        if state != before[name]:
            raise Drawn(f"it draws from the global generator of {name}")


def _states() -> dict[str, object]:
    numpy = np.random.get_state(legacy=False)["state"]
    torch_state = torch.default_generator.get_state().numpy().tobytes()
    return {"Python": random.getstate(), "NumPy": (numpy["key"].tobytes(), numpy["pos"]), "torch": torch_state}
