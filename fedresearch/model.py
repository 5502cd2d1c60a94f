"""A run's model: from its config, and from its directory."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor
from torch.nn import Module

from fedresearch.building import Builder
from fedresearch.config.schema import Config
from fedresearch.errors import InputError
from fedresearch.local.parts import forget_statistics
from fedresearch.runs.directory import MODEL, write_whole
from fedresearch.runs.record import read_record


def build_model(config: Config, choices: Mapping[str, str | None]) -> Module:
    """Build the model for the dataset's declared shape and classes; with dtype float64, all its floats are that."""
    declared = config.dataset["declares"]
    model = Builder(choices).build(
        "model",
        {key: value for key, value in config.model.items() if key != "requires"},
        Module,
        input_shape=tuple(declared["input_shape"]),
        num_classes=declared["num_classes"],
    )
    if config.strategy["buffers"] == "drop":
        forget_statistics(model)
    return model.double() if config.dtype == "float64" else model


def load_model(directory: str | Path) -> Module:
    """Return the final global model of a finished run, in evaluation mode.

    Parameters
    ----------
    directory : path
        The run's directory.

    Raises
    ------
    InputError
        If the directory holds no finished run.
    """
    directory = Path(directory)
    if not (directory / MODEL).is_file():
        raise InputError(f"{directory} holds no {MODEL}: it is not the directory of a finished run")
    record = read_record(directory)
    model = build_model(Config(**record["config"]), record["choices"])
    model.load_state_dict(safetensors.torch.load_file(directory / MODEL))
    return model.eval()


def save_model(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's ``state_dict`` as a safetensors file, with what is to be read in its header."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, None if metadata is None else dict(metadata))
    write_whole(path, lambda temporary: temporary.write_bytes(content))
