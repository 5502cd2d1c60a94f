"""Clipping of updates."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fedresearch.channel.stage import ChannelStage, Encoded, Tensors, Where, refuse_integers


class Clip(ChannelStage):
    """Scales an update down to an L2 norm of at most ``max_norm``."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return the update, scaled if its norm is larger."""
        refuse_integers(self, update)
        norm = vector_norm(update, dtype=torch.float64)  # the square of a large entry is beyond float32
        return Encoded(update if norm <= self.max_norm else update * (self.max_norm / norm))
