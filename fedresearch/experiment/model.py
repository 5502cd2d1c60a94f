"""A run's model, built from its config or loaded from its directory."""

import json
import operator
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module

from fedresearch.config.input_shape import input_shape
from fedresearch.config.schema import Config
from fedresearch.errors import InputError, named, one_line
from fedresearch.experiment.builder import Builder, refuse_foreign
from fedresearch.federation.records import sha256, tensor_record, view
from fedresearch.local.forward import compute_in_bfloat16
from fedresearch.local.state_names import remove_running_statistics
from fedresearch.runs.checkpoint import write_arrays
from fedresearch.runs.directory import MODEL, write_whole
from fedresearch.runs.files import refuse_irregular, unreadable
from fedresearch.runs.record import RECORD, num_rounds, read_run
from fedresearch.runs.record_fields import refuse_invalid_fields

BEST = "best.safetensors"
# For each of the two, the file next to it with the clients' own models.
CLIENTS = {MODEL: "clients.safetensors", BEST: "best_clients.safetensors"}


def build_model(config: Config, choices: Mapping[str, str | None]) -> Module:
    """Build the model for the declared shape of its inputs and the dataset's classes.

    With dtype float64 it is in double precision, with the initial weights of single precision. Tensors that are neither
    parameters nor buffers are double only in a model that is made so. With precision bf16 it computes in bfloat16.
    """
    given = {"input_shape": tuple(input_shape(config)), "num_classes": config.dataset["declares"]["num_classes"]}
    builder = Builder(choices)
    model = builder.build("model", config.model, Module, **given)
    if config.dtype == "float64":
        single, dtype = model, torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            model = builder.build("model", config.model, Module, **given).double()
        finally:
            torch.set_default_dtype(dtype)
        model.load_state_dict(single.state_dict())
    if config.strategy["buffers"] == "drop":
        remove_running_statistics(model)
    if config.precision == "bf16":
        compute_in_bfloat16(model)
    return model


def fastest_memory_format(model: Module, device: torch.device) -> torch.memory_format:
    """Return the memory format that a model declares for a CPU; double precision has no kernels for another one."""
    declared: torch.memory_format = getattr(model, "memory_format", torch.preserve_format)
    single = all(tensor.dtype == torch.float32 for tensor in model.parameters())
    return declared if single and device.type == "cpu" else torch.preserve_format


def load_model(directory: str | Path, client: int | None = None, *, best: bool = False, trust: bool = False) -> Module:
    """Do as :func:`fedresearch.load_model`."""
    directory = Path(directory)
    path = directory / (BEST if best else MODEL)
    tensors, header = _read(path, directory)
    record, rows = read_run(directory)
    refuse_invalid_fields(directory / RECORD, record)
    node = record["config"].get("model")
    if not trust:
        refuse_foreign(node)
    personal = record.get("personal")
    server_round = _round(header, num_rounds(rows)) if best else num_rounds(rows)
    row = next((row for row in rows if row["round"] == server_round), {})
    shared = {name: tensor for name, tensor in tensors.items() if name not in (personal or ())}
    digest = sha256(tensor_record(tensors))
    is_whole = header.get("sha256") in (None, digest)
    # Older records do not have the names that the row's hash leaves out.
    if not is_whole or (personal is not None and sha256(tensor_record(shared)) != row.get("model/sha256")):
        raise InputError(f"{path} is damaged or not of round {server_round}: it differs from model/sha256")
    own: Mapping[str, Tensor] = {}
    if client is not None:
        own = _read_client(path, _partition_id(client), digest, record)
    elif record.get("own_models"):
        warnings.warn(_not_the_result(directory, record), stacklevel=3)
    model = _build_as_recorded(record, None if trust else tensors, path)
    try:
        model.load_state_dict({**tensors, **own})
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model in {RECORD}: {one_line(error)}") from None
    return model.eval()


def _build_as_recorded(record: Mapping[str, Any], expected: Mapping[str, Tensor] | None, path: Path) -> Module:
    """Build a record's model; if the expected tensors are known, compare their shapes first, without memory."""
    try:
        config = Config(**record["config"])
        if expected is not None:
            with torch.device("meta"):
                state = build_model(config, record["choices"]).state_dict()
            if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in expected.items()}:
                raise InputError(f"{path} does not fit the model in {RECORD}")
        return build_model(config, record["choices"])
    except (KeyError, TypeError, AttributeError, AssertionError, OverflowError) as error:
        raise InputError(f"the config in {RECORD} does not describe a model: {named(error)}") from error


def _not_the_result(directory: Path, record: Mapping[str, Any]) -> str:
    personal = sorted(record.get("personal", ()))
    untrained = ", ".join(personal[:3]) + f" and {len(personal) - 3} more" * (len(personal) > 3)
    return (
        f"the results of {directory} are the clients' own models (personal/... in its rows), and this is the global one"
        + f", in which {untrained} have their initial values" * bool(personal)
        + "; load_model(DIR, client=ID) returns a client's"
    )


def _read(path: Path, directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and the fields in its header."""
    try:
        refuse_irregular(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (FileNotFoundError, NotADirectoryError):
        why = (
            "a run saves it with checkpoint.best" if path.name == BEST else "it is not the directory of a finished run"
        )
        raise InputError(f"{directory} holds no {path.name}: {why}") from None
    except MemoryError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _round(header: Mapping[str, str], otherwise: int) -> int:
    text = header.get("round", "")
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise


def _partition_id(client: Any) -> int:
    """Return a client's partition id, which may be an integer of NumPy or torch."""
    try:
        return int(operator.index(client))
    except TypeError:
        raise InputError(f"client must be a partition id, such as 0, got {client!r}") from None


def _read_client(path: Path, client: int, model_sha256: str, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the part of its own model that a client keeps; it is empty if the client never trained."""
    if not record.get("own_models"):
        raise InputError(f"the clients of {path.parent} have no own models; leave client out for the global one")
    of_clients = path.with_name(CLIENTS[path.name])
    try:
        refuse_irregular(of_clients)
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} holds no {of_clients.name}: it was removed, or its clients train new own models for each "
            "evaluation"
        ) from None
    try:
        with safe_open(of_clients, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            names = [name for name in file.keys() if name.startswith(f"{client}/")]  # noqa: SIM118  # not a dict
            own = {name.partition("/")[2]: file.get_tensor(name) for name in names}
        num_clients, of_model, digests = int(about["num_clients"]), about["model"], dict(about["sha256"])
    except MemoryError as error:
        raise unreadable(of_clients, error) from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{of_clients} is damaged: {error}") from None
    if of_model != model_sha256:
        raise InputError(f"{of_clients} does not belong to {path.name}, or one of them is damaged")
    if not 0 <= client < num_clients:
        raise InputError(f"client {client} does not exist; try one from 0 to {num_clients - 1}")
    if digests.get(str(client)) != (sha256(tensor_record(own)) if own else None):
        raise InputError(f"{of_clients} is damaged: client {client} differs from its sha256")
    return own


def save_model(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's ``state_dict`` as a safetensors file, with one field in its header, or with its SHA-256.

    With several fields, their order and so the bytes of the file would vary.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, dict(metadata or {"sha256": sha256(tensor_record(tensors))}))
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def save_clients(path: Path, own: Mapping[int, ArrayRecord], num_clients: int, state: Mapping[str, Tensor]) -> None:
    """Write the parts of their own models that clients keep as one safetensors file, next to the global model's.

    Parameters
    ----------
    path : Path
        The global model's file.
    own : mapping of int to ArrayRecord
        By partition id, without clients that keep nothing.
    num_clients : int
        Number of clients.
    state : mapping of str to Tensor
        The ``state_dict`` of the global model that they belong to.
    """
    arrays = {f"{client}/{name}": view(array) for client, kept in own.items() for name, array in kept.items()}
    digests = {str(client): sha256(kept) for client, kept in own.items()}
    about = {"num_clients": num_clients, "model": sha256(tensor_record(state)), "sha256": digests}
    write_arrays(path.with_name(CLIENTS[path.name]), arrays, {"about": json.dumps(about)})
