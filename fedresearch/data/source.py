"""What a dataset is before it is partitioned: arrays of samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Samples of one split, held as contiguous arrays.

    Attributes
    ----------
    x : Tensor
        Inputs of shape ``(n, *input_shape)``: floats, normalised and ready for a model, or int64 tokens.
    y : Tensor
        Targets of shape ``(n,)``: int64 class indices, or floats for a regression.
    natural_id : ndarray or None
        Who each sample comes from (a writer, a device), of shape ``(n,)``; None where the dataset does not say.
    """

    x: Tensor
    y: Tensor
    natural_id: NDArray[np.generic] | None = None


@dataclass(frozen=True)
class Source:
    """A dataset: what is partitioned among the clients, and the test split that the server keeps."""

    train: Samples
    test: Samples
