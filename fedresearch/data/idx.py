"""MNIST and similar datasets from their published IDX files."""

import gzip
import inspect
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedresearch.data import hub
from fedresearch.data.images import normalisation
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError, reason

MAX_BYTES = 2**32
_NAMES = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def load(*, root: str | None, raw: str, mean: Sequence[float], std: Sequence[float], **options: Any) -> Source:
    """Load grey images and their labels from four IDX files, or from the Hub.

    Parameters
    ----------
    root : str or None
        Folder with the files, ``train-images-idx3-ubyte`` and so on, gzipped (``.gz``) or not; None: the Hub.
    raw : str
        Torchvision's folder for them below ``root``, which is searched too.
    mean, std : sequence of float
        One entry each; as in :func:`fedresearch.data.hub.load`.
    **options
        Arguments of :func:`fedresearch.data.hub.load`.

    Raises
    ------
    InputError
        If a file is missing or has the wrong format.
    """
    if root is None:
        try:
            return hub.load(mean=mean, std=std, **options)
        except hub.HubUnreachableError as error:
            raise InputError(f"{error}, or set dataset.root=DIR to a folder with its four IDX files") from error
    if options.get("path") is not None:
        raise InputError("dataset.root and dataset.path are both set; try dataset.path=null")
    inspect.signature(hub.load).bind_partial(**options)  # raises for another argument, as the Hub would
    folder = Path(root).expanduser()
    images, labels, test_images, test_labels = _find(folder, folder / raw)
    return Source(_load_samples(images, labels), _load_samples(test_images, test_labels), normalisation(1, mean, std))


def _find(*folders: Path) -> list[Path]:
    """Return the four files from one folder: the first that contains any of them."""
    for folder in folders:
        found = [next(filter(Path.is_file, (folder / name, folder / f"{name}.gz")), None) for name in _NAMES]
        if any(found) or folder == folders[-1]:
            missing = [name for name, file in zip(_NAMES, found, strict=True) if file is None]
            if missing:
                break
            return [file for file in found if file is not None]
    raise InputError(f"dataset.root={folders[0]} must hold {missing[0]} or {missing[0]}.gz, itself or in {folders[1]}")


def _load_samples(images_file: Path, labels_file: Path) -> Samples:
    images, labels = read_idx(images_file, ndim=3), read_idx(labels_file, ndim=1)
    if len(images) != len(labels):
        raise InputError(f"{images_file} holds {len(images)} images, but {labels_file} holds {len(labels)} labels")
    return Samples(torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64)))


def read_idx(file: Path, *, ndim: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "the IDX file format").

    Parameters
    ----------
    file : Path
        The file; gzipped if its name ends with ``.gz``.
    ndim : int
        Its number of dimensions.

    Raises
    ------
    InputError
        If the file is not an array of this type.
    """
    magic = bytes([0, 0, 0x08, ndim])  # 0x08: unsigned bytes
    start = 4 + 4 * ndim
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            header = opened.read(start)
            if header[:4] != magic:
                raise InputError(
                    f"{file} must be an IDX file of {ndim}-dimensional bytes, which begins with 0x{magic.hex()}, "
                    f"got 0x{header[:4].hex()}"
                )
            if len(header) < start:
                raise InputError(f"{file} ends within its header of {start} bytes")
            shape = tuple(np.frombuffer(header[4:], dtype=">u4").tolist())
            size = math.prod(shape)
            expected = f"{file} must hold {' x '.join(map(str, shape))} = {size} bytes of data, as its header says"
            if size > MAX_BYTES:
                raise InputError(f"{expected}, at most {MAX_BYTES} are read")
            content = opened.read(size + 1)  # a limit to what a .gz file inflates
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from error
    if len(content) != size:
        raise InputError(f"{expected}, got {'more' if len(content) > size else len(content)}")
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)
