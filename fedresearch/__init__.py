"""Reproducible federated-learning ablations: Hydra composes, Flower runs, Weights & Biases records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# These packages read them when imported: no telemetry, and no progress bars of partitioners between our lines.
for _name, _value in (("FLWR_TELEMETRY_ENABLED", "0"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("TQDM_DISABLE", "1")):
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module


def load_model(
    directory: str | Path, client: int | None = None, *, best: bool = False, trust: bool = False
) -> "Module":
    """Return the final global model of a finished run, or a client's own one, as an ``nn.Module`` in evaluation mode.

    Raises an error unless its file has the ``model/sha256`` of its round.

    Parameters
    ----------
    directory : path
        The run's directory, which holds ``run.json`` and ``model.safetensors``.
    client : int, optional
        The partition id of the client whose own model to return, if the strategy gives clients their own. A client that
        never trained has the global model, with initial values where clients keep their own. None: the global model.
    best : bool
        Whether to return the model of the best round by ``checkpoint.best`` instead of the last round's.
    trust : bool
        Whether to build a model from outside ``fedresearch.models``. This runs the code that the record names, with the
        arguments that it names: use it only for your own records.

    Warns
    -----
    UserWarning
        If the result of the run is the clients' own models, and this is the global one.

    Raises
    ------
    InputError
        If the directory holds no finished run, one of its files is damaged, the model is from outside
        ``fedresearch.models`` and not trusted, or the client does not exist.
    """
    from fedresearch.experiment import model  # importing torch takes seconds; the command line must not wait

    return model.load_model(directory, client, best=best, trust=trust)


def load_clients(directory: str | Path) -> "DataFrame":
    """Return what each client of a run did in each round, as far as the run is.

    Returns
    -------
    DataFrame
        A row for each ``round`` and ``partition_id`` that trained or evaluated, with the columns that
        ``docs/columns.md`` lists; NaN where the client has no number.

    Raises
    ------
    InputError
        If the directory holds no run, or the run has no ``clients.jsonl``, or it is damaged.
    """
    from fedresearch.runs import client_table

    return client_table.load_clients(Path(directory))
