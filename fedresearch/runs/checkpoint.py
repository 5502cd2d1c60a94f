"""Checkpoints: one safetensors file each, whose header holds the plain values as JSON and a SHA-256 of it all."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedresearch.errors import InputError
from fedresearch.runs.directory import write_whole, writing
from fedresearch.runs.files import refuse_irregular, unreadable

log = logging.getLogger("fedresearch")

FOLDER = "checkpoints"
FORMAT = "1"

Arrays = Mapping[str, NDArray[Any]]


def write_checkpoint(run: Path, server_round: int, plain: Any, arrays: Arrays, keep: int, digest: str = "") -> None:
    """Write the checkpoint after a round, whole or not at all, and then remove all but the newest.

    Parameters
    ----------
    run : Path
        The run's directory.
    server_round : int
        The round.
    plain : JSON value
        Everything but the arrays.
    arrays : mapping of str to ndarray
        The rest; they come back in C order.
    keep : int
        Checkpoints to keep, this one included.
    digest : str
        Of the config.

    Raises
    ------
    Unwritable
        If it cannot be written. Those before it stay.
    """
    folder = run / FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    text = json.dumps(plain)
    metadata = {
        "format": FORMAT,
        "round": str(server_round),
        "digest": digest,
        "plain": text,
        "sha256": _sha256(text, arrays),
    }

    write_arrays(folder / f"round_{server_round:06d}.safetensors", arrays, metadata)
    found = _checkpoints(run)
    # Those of later rounds are damaged, or the run had gone on from them.
    kept = [path for of, path in found if of <= server_round][:keep]
    for _, path in found:
        if path not in kept:
            with writing(path):
                path.unlink()


def write_arrays(path: Path, arrays: Arrays, header: Mapping[str, str]) -> None:
    """Write arrays as a safetensors file, whole or not at all, for whoever may read the folder.

    Raises
    ------
    Unwritable
        If it cannot be written.
    """

    def write(temporary: Path) -> None:
        try:
            save_file(dict(arrays), temporary, dict(header))
        except SafetensorError as error:  # the system's, in its own words
            raise OSError(str(error)) from error
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # it is made for its owner alone

    write_whole(path, write)


def read_checkpoints(run: Path, digest: str | None = None) -> Iterator[tuple[int, Any, Arrays]]:
    """Yield the round, the plain values and the arrays of each checkpoint that is whole, newest first.

    Parameters
    ----------
    run : Path
        The run's directory.
    digest : str, optional
        Of the config that they must be of; None: of any.

    Raises
    ------
    InputError
        If one is of another version, or of another config.
    """
    for server_round, path in _checkpoints(run):
        try:
            refuse_irregular(path)
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                _refuse_other(path, metadata, digest)  # before anything of it is unpacked
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
        except MemoryError as error:
            raise unreadable(path, error) from None
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is damaged and is not used: %s", path, error)
            continue
        text = metadata.get("plain", "")
        if metadata.get("sha256") != _sha256(text, arrays) or metadata.get("round") != str(server_round):
            log.warning("%s is damaged and is not used: its content is not what its sha256 says", path)
            continue
        yield server_round, json.loads(text), arrays


def _refuse_other(path: Path, metadata: Mapping[str, str], digest: str | None) -> None:
    """Refuse a checkpoint of another version, or of another config."""
    if metadata.get("format", FORMAT) != FORMAT:
        raise InputError(
            f"{path} has format {metadata['format']}, and this version of fedresearch reads format {FORMAT}; "
            "resume with the version of run.json, or start a new run"
        )
    found = metadata.get("digest") or digest  # an older one does not say
    if digest is not None and found != digest:
        raise InputError(
            f"{path} is of the config with digest {found}, and this run's digest is {digest}; "
            "remove it, or start a new run"
        )


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return the rounds of a run's checkpoints and where they are, newest first."""
    paths = [path for path in (run / FOLDER).glob("round_*.safetensors") if path.stem[6:].isdecimal()]
    return sorted(((int(path.stem[6:]), path) for path in paths), reverse=True)


def _sha256(text: str, arrays: Arrays) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
