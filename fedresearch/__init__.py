"""Reproducible federated-learning ablations: Hydra composes, Flower runs, Weights & Biases records."""

from pathlib import Path
from typing import TYPE_CHECKING

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
    from fedresearch.experiment import load_model  # torch takes seconds to import; the command line must not wait

    return load_model(directory)
