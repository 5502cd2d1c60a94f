"""MNIST and its kin from the IDX files in which they were published."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedresearch.data import hub
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError


def load(*, root: str | None, raw: str, mean: Sequence[float], std: Sequence[float], **options: Any) -> Source:
    """Load grey images and their labels from four IDX files, or from the Hub.

    Parameters
    ----------
    root : str or None
        Folder with the files, ``train-images-idx3-ubyte`` and so on, gzipped (``.gz``) or not; None: the Hub.
    raw : str
        Where below ``root`` torchvision puts them, which is looked into also.
    mean, std : sequence of float
        One entry each; as in :func:`fedresearch.data.hub.load`.
    **options
        Arguments of :func:`fedresearch.data.hub.load`.

    Raises
    ------
    InputError
        If a file is missing, or is not what its name says.
    """
    if root is None:
        try:
            return hub.load(mean=mean, std=std, **options)
        except hub.HubUnreachableError as error:
            raise InputError(f"{error}, or set dataset.root=DIR to a folder with its four IDX files") from error
    if options.get("path") is not None:
        raise InputError("dataset.root and dataset.path are both set; try dataset.path=null")
    folder = Path(root).expanduser()
    return Source(
        *(_load_samples(folder, folder / raw, prefix=prefix, mean=mean, std=std) for prefix in ("train", "t10k"))
    )


def _load_samples(*folders: Path, prefix: str, mean: Sequence[float], std: Sequence[float]) -> Samples:
    images_file = _find(folders, f"{prefix}-images-idx3-ubyte")
    labels_file = _find(folders, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_file, ndim=3), read_idx(labels_file, ndim=1)
    if len(images) != len(labels):
        raise InputError(f"{images_file} holds {len(images)} images, but {labels_file} holds {len(labels)} labels")
    return Samples(hub.normalise(images[:, None], mean, std), torch.from_numpy(labels.astype(np.int64)))


def _find(folders: Sequence[Path], name: str) -> Path:
    for folder in folders:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    raise InputError(f"dataset.root={folders[0]} must hold {name} or {name}.gz, itself or in {folders[1]}")


def read_idx(file: Path, *, ndim: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "the IDX file format").

    Parameters
    ----------
    file : Path
        The file; gzipped where its name ends with ``.gz``.
    ndim : int
        Number of dimensions that it must have.

    Raises
    ------
    InputError
        If the file is no such array.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    magic = bytes([0, 0, 0x08, ndim])  # 0x08: unsigned bytes
    if content[:4] != magic:
        raise InputError(
            f"{file} is no IDX file of {ndim}-dimensional bytes: it must begin with 0x{magic.hex()}, "
            f"got 0x{content[:4].hex()}"
        )
    start = 4 + 4 * ndim
    if len(content) < start:
        raise InputError(f"{file} ends within its header of {start} bytes")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{file} must hold {' x '.join(map(str, shape))} = {math.prod(shape)} bytes of data, as its header says, "
            f"got {len(content) - start}"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=start).reshape(shape)
