"""Updates in few bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedresearch.channel.stage import ChannelStage, Encoded, Tensors, Where, refuse_integers


class Quantise(ChannelStage):
    """Rounds each entry at random to one of ``2**bits`` even levels from the least entry to the largest, without bias.

    Stochastic k-level quantisation, Suresh et al. 2017 (arXiv:1611.00429), Section 2.2.

    Parameters
    ----------
    bits : int
        Bits of each entry, which divide a byte: 1, 2, 4 or 8.
    """

    def __init__(self, bits: int) -> None:
        self.levels = 2**bits - 1
        self.shifts = torch.arange(0, 8, bits, dtype=torch.uint8)  # of the entries in a byte

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return the number of each entry's level, packed into bytes, and the levels."""
        refuse_integers(self, update)
        low, high = update.aminmax()
        step = (high - low) / self.levels
        exact = ((update - low) / step).nan_to_num()  # 0 where all entries are equal
        numbers = (exact + torch.rand_like(exact)).floor().clamp(max=self.levels).to(torch.uint8)
        padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % len(self.shifts)))
        packed = (padded.view(-1, len(self.shifts)) << self.shifts).sum(1, dtype=torch.uint8)
        return Encoded(packed, {"low": low, "step": step, "size": torch.tensor(len(update))})

    def decode(self, replies: Sequence[Encoded], where: Sequence[Where]) -> list[Tensor]:
        """Return each entry's level."""
        decoded = []
        for reply in replies:
            numbers = (reply.update[:, None] >> self.shifts & self.levels).ravel()[: int(reply.extra["size"])]
            decoded.append(reply.extra["low"] + numbers * reply.extra["step"])
        return decoded
