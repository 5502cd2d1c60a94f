"""Clipping of updates."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor
from torch.linalg import vector_norm

from fedresearch.channel.stage import Encoded, RowStage, Tensors, refuse_integers


class Clip(RowStage):
    """Scales an update down to an L2 norm of at most ``max_norm``."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def encode_rows(self, updates: Tensor, states: Sequence[Tensors], generators: Iterable[Generator]) -> Encoded:
        """Return the updates, scaled where their norm is larger."""
        refuse_integers(self, updates)
        # The square of a large entry is beyond float32.
        norms = vector_norm(updates, dim=1, keepdim=True, dtype=torch.float64)
        scaled = updates * (self.max_norm / norms).to(updates.dtype)
        return Encoded(torch.where(norms <= self.max_norm, updates, scaled))
