"""Sparse updates with error feedback."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedresearch.channel.stage import ChannelStage, Encoded, Tensors, Where, refuse_integers


class TopK(ChannelStage):
    """Sends the entries with the largest absolute values; what is left is added to the client's next update.

    Stich et al. 2018 (arXiv:1809.07599), Algorithm 1, with the updates of rounds in place of gradients.

    Parameters
    ----------
    share : float
        The share of the entries that are sent, at least one.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return the largest entries and their places; keep the others."""
        refuse_integers(self, update)
        corrected = update + state.get("error", 0)
        places = corrected.abs().topk(max(1, round(self.share * len(update)))).indices.sort().values
        extra = {"places": places.int(), "size": torch.tensor(len(update))}
        return Encoded(corrected[places], extra, {"error": corrected.index_fill(0, places, 0)})

    def decode(self, replies: Sequence[Encoded], where: Sequence[Where]) -> list[Tensor]:
        """Return the entries at their places, with zeros elsewhere."""
        return [
            reply.update.new_zeros(int(reply.extra["size"])).index_copy(0, reply.extra["places"].long(), reply.update)
            for reply in replies
        ]
