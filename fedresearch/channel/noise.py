"""Noise on updates."""

import torch
from torch import Tensor

from fedresearch.channel.stage import ChannelStage, Encoded, Tensors, Where, refuse_integers


class Noise(ChannelStage):
    """Adds Gaussian noise of mean 0 to each entry of a client's update.

    Parameters
    ----------
    std : float
        The standard deviation of the noise.
    """

    def __init__(self, std: float) -> None:
        self.std = std

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return the update plus noise."""
        refuse_integers(self, update)
        return Encoded(update + self.std * torch.randn_like(update))
