"""Updates in few bits."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from fedresearch.channel.stage import Encoded, RowStage, Tensors, refuse_integers


class Quantise(RowStage):
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

    def encode_rows(self, updates: Tensor, states: Sequence[Tensors], generators: Iterable[Generator]) -> Encoded:
        """Return the number of each entry's level, packed into bytes, and the levels."""
        refuse_integers(self, updates)
        num_clients, size = updates.shape
        low, high = updates.aminmax(dim=1, keepdim=True)
        step = (high - low) / self.levels
        exact = ((updates - low) / step).nan_to_num()  # 0 where all entries are equal
        drawn = torch.empty_like(exact)
        for row, generator in zip(drawn, generators, strict=True):
            row.uniform_(generator=generator)
        numbers = (exact + drawn).floor().clamp(max=self.levels).to(torch.uint8)
        padded = torch.nn.functional.pad(numbers, (0, -size % len(self.shifts)))
        packed = (padded.view(num_clients, -1, len(self.shifts)) << self.shifts).sum(2, dtype=torch.uint8)
        return Encoded(packed, {"low": low[:, 0], "step": step[:, 0], "size": torch.full((num_clients,), size)})

    def decode_rows(self, replies: Encoded) -> Tensor:
        """Return each entry's level."""
        low, step, size = (replies.extra[key][:, None] for key in ("low", "step", "size"))
        numbers = (replies.update[:, :, None] >> self.shifts & self.levels).flatten(1)[:, : int(size[0])]
        return low + numbers * step
