"""Sparse updates with error feedback."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from fedresearch.channel.stage import Encoded, RowStage, Tensors, refuse_integers


class TopK(RowStage):
    """Sends the entries with the largest absolute values; what is left is added to the client's next update.

    Stich et al. 2018 (arXiv:1809.07599), Algorithm 1, with the updates of rounds in place of gradients.

    Parameters
    ----------
    share : float
        The share of the entries that are sent, at least one.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def encode_rows(self, updates: Tensor, states: Sequence[Tensors], generators: Iterable[Generator]) -> Encoded:
        """Return the largest entries and their places; keep the others."""
        refuse_integers(self, updates)
        num_clients, size = updates.shape
        nothing = updates.new_zeros(size)
        corrected = updates + torch.stack([state.get("error", nothing) for state in states])
        places = corrected.abs().topk(max(1, round(self.share * size)), dim=1).indices.sort(dim=1).values
        extra = {"places": places.int(), "size": torch.full((num_clients,), size)}
        return Encoded(corrected.gather(1, places), extra, {"error": corrected.scatter(1, places, 0)})

    def decode_rows(self, replies: Encoded) -> Tensor:
        """Return the entries at their places, with zeros elsewhere."""
        updates = replies.update.new_zeros(len(replies.update), int(replies.extra["size"][0]))
        return updates.scatter_(1, replies.extra["places"].long(), replies.update)
