"""Clipping of updates."""

from torch import Tensor
from torch.linalg import vector_norm

from fedresearch.channel.stage import ChannelStage, Encoded, Tensors, Where


class Clip(ChannelStage):
    """Scales an update down to an L2 norm of at most ``max_norm``."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return the update, scaled if its norm is larger."""
        norm = vector_norm(update)
        return Encoded(update if norm <= self.max_norm else update * (self.max_norm / norm))
