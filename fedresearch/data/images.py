"""Decoding of images into arrays, and their normalisation for a model."""

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedresearch.data.source import Normalisation
from fedresearch.errors import InputError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 2**24  # of one image: 4096 x 4096
_CHANNELS = {"L": 1, "RGB": 3}
# Without those of 16 bits, which would be truncated.
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_CHUNK = 1000  # images read from a column at once


def decode_images(column: pa.ChunkedArray, name: str, mode: str | None = None) -> NDArray[np.uint8]:
    """Return a column's images as an array of shape ``(n, channels, height, width)``.

    Only bytes in the column itself are read; a file or an address in a row is never opened.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Encoded images, or structs with a field ``bytes``, the Hub's format of images.
    name : str
        The column's name, for messages.
    mode : {"L", "RGB"} or None
        The mode to which all images are converted; None: no conversion.

    Raises
    ------
    InputError
        If a row is not an image in one of ``FORMATS``, has more than ``MAX_PIXELS``, or differs from the first row in
        size or mode.
    """
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # our limit is lower
        rows = enumerate(_contents(column, name))
        row, content = next(rows)
        first = _decode(content, f"row {row} of dataset.image={name}", mode)
        pixels = _empty(len(column), first, name)
        pixels[0] = _channels_first(first)
        for row, content in rows:
            image = _decode(content, f"row {row} of dataset.image={name}", mode)
            if (image.mode, image.size) != (first.mode, first.size):
                hint = "dataset.mode=RGB" if image.size == first.size else "dataset.path=DIR with images of one size"
                raise InputError(
                    f"dataset.image={name} must hold images of one size and mode, got {_kind(first)} (row 0) and "
                    f"{_kind(image)} (row {row}); try {hint}"
                )
            pixels[row] = _channels_first(image)
    return pixels


def normalisation(num_channels: int, mean: Sequence[float] | float, std: Sequence[float] | float) -> Normalisation:
    """Return the normalisation of pixels by a mean and a standard deviation for each channel.

    A single number is that of the only channel.

    Raises
    ------
    InputError
        If mean and std do not have one value in [0, 1] for each channel.
    """
    mean, std = ([*value] if isinstance(value, Sequence) else [value] for value in (mean, std))
    if not len(mean) == len(std) == num_channels:
        raise InputError(
            f"dataset.mean and dataset.std must have an entry for each channel, and the images have {num_channels}, "
            f"got dataset.mean={mean} dataset.std={std}"
        )
    if not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise InputError(
            f"pixels are scaled to [0, 1] before dataset.mean and dataset.std, which must be in [0, 1] and (0, 1], "
            f"got dataset.mean={mean} dataset.std={std}; divide them by 255"
        )
    centre, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    return Normalisation(centre, scale)


def _contents(column: pa.ChunkedArray, name: str) -> Iterator[bytes]:
    """Yield each row's encoded image."""
    kind, encoded = column.type, column
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        encoded = pc.struct_field(column, "bytes")
    is_binary = any(
        holds(encoded.type)
        for holds in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    )
    if not is_binary:
        raise InputError(f"dataset.image={name} must hold encoded images, got {kind}")
    for start in range(0, len(encoded), _CHUNK):
        for row, content in enumerate(encoded.slice(start, _CHUNK).to_pylist(), start):
            if content is None:
                raise InputError(
                    f"row {row} of dataset.image={name} must hold an image; a file or an address in it is not "
                    "opened; try dataset.revision=refs/convert/parquet, or dataset.path=DIR with files that hold images"
                )
            yield content


def _decode(content: bytes, where: str, mode: str | None) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{where} has {width} x {height} pixels, more than the {MAX_PIXELS} that an image may have"
            )
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{where} must be an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises some ten types for a damaged image, including SyntaxError
        raise InputError(f"{where} cannot be read as an image: {one_line(error)}") from error
    if mode is not None and image.mode in _CONVERTIBLE:
        return image.convert(mode)
    if image.mode not in _CHANNELS:
        hint = "; try dataset.mode=RGB, or dataset.mode=L for grey" if image.mode in _CONVERTIBLE else ""
        raise InputError(f"{where} must be a grey or RGB image (modes L, RGB), got mode {image.mode}{hint}")
    return image


def _empty(number: int, image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return an empty array for the images, or refuse if the memory is too small."""
    shape = (number, _CHANNELS[image.mode], image.height, image.width)
    needed = 2 * math.prod(shape)  # once in the order of the file, and once in that of the clients
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise InputError(
            f"dataset.image={name} holds {number} images of {_kind(image)}, which need {needed / 1e9:.1f} GB, and this "
            f"machine has {memory / 1e9:.1f}"
        )
    return np.empty(shape, dtype=np.uint8)


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _kind(image: Image.Image) -> str:
    return f"{image.width} x {image.height} {image.mode}"
