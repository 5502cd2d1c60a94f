"""Noise on updates."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from fedresearch.channel.stage import Encoded, RowStage, Tensors, refuse_integers


class Noise(RowStage):
    """Adds Gaussian noise of mean 0 to each entry of a client's update.

    Parameters
    ----------
    std : float
        The standard deviation of the noise.
    """

    def __init__(self, std: float) -> None:
        self.std = std

    def encode_rows(self, updates: Tensor, states: Sequence[Tensors], generators: Iterable[Generator]) -> Encoded:
        """Return the updates plus noise."""
        refuse_integers(self, updates)
        noise = torch.empty_like(updates)
        for row, generator in zip(noise, generators, strict=True):
            row.normal_(generator=generator)
        return Encoded(updates + self.std * noise)
