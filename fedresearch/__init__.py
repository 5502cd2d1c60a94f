"""Reproducible federated-learning ablations: Hydra composes, Flower runs, Weights & Biases records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Read when these packages are imported: no telemetry, and no progress bars of partitioners between our lines.
for _name, _value in (("FLWR_TELEMETRY_ENABLED", "0"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("TQDM_DISABLE", "1")):
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from torch.nn import Module


def load_model(
    directory: str | Path, client: int | None = None, *, best: bool = False, trust: bool = False
) -> "Module":
    """Return the final global model of a finished run, or a client's own one, as an ``nn.Module`` in evaluation mode.

    Its file is held against the ``model/sha256`` of its round.

    Parameters
    ----------
    directory : path
        The run's directory, which holds ``run.json`` and ``model.safetensors``.
    client : int, optional
        The partition id of the client whose own model to return, where the strategy gives clients any. One that never
        took part has the global model, with the initial values of what stays on clients. None: the global model.
    best : bool
        Whether to return the model of the best round by ``checkpoint.best``, and not that of the last one.
    trust : bool
        Whether to build a model that is none of ``fedresearch.models``. It is built by running what the record names,
        with the arguments that it names: only for records of your own.

    Warns
    -----
    UserWarning
        If it is the global model of a run whose result are the clients' own.

    Raises
    ------
    InputError
        If the directory holds no finished run, a file of it is damaged, the model is none of ``fedresearch.models`` and
        not trusted, or there is no such client.
    """
    from fedresearch.experiment import model  # torch takes seconds to import; the command line must not wait

    return model.load_model(directory, client, best=best, trust=trust)
