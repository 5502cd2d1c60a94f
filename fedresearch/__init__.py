"""Reproducible federated-learning ablations: Hydra composes, Flower runs, Weights & Biases records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Read when these packages are imported: no telemetry, and no progress bars of partitioners between our lines.
for _name, _value in (("FLWR_TELEMETRY_ENABLED", "0"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("TQDM_DISABLE", "1")):
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from torch.nn import Module


def load_model(directory: str | Path) -> "Module":
    """Return the final global model of a finished run as its ``nn.Module``, in evaluation mode.

    Parameters
    ----------
    directory : path
        The run's directory, which holds ``run.json`` and ``model.safetensors``.

    Raises
    ------
    InputError
        If the directory holds no finished run.
    """
    from fedresearch.model import load_model  # torch takes seconds to import; the command line must not wait

    return load_model(directory)
