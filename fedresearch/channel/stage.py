"""One stage of the channel: what a client does to its update, and what the server does to those of a round."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fedresearch.errors import InputError

Tensors = Mapping[str, Tensor]


class Where(NamedTuple):
    """Whose update it is, and in which round."""

    server_round: int
    partition_id: int


class Encoded(NamedTuple):
    """What a stage makes of an update.

    Attributes
    ----------
    update : Tensor
        The vector for the next stage, of any length and dtype; that of the last stage is sent.
    extra : mapping of str to Tensor
        What is sent in addition, for ``decode``.
    state : mapping of str to Tensor
        What the client keeps, and receives in its next round.
    """

    update: Tensor
    extra: Tensors = MappingProxyType({})
    state: Tensors = MappingProxyType({})


class ChannelStage:
    """A stage that changes nothing.

    The update is one vector: the trained parameters minus the received ones, on the CPU. Both methods may draw from the
    global generators of torch, NumPy and Python, which are seeded for each call.

    ``encode`` must be pure, since it runs in many processes: what it keeps is in its state. ``decode`` runs in one
    process, and may keep what it needs in attributes, which checkpoints hold.
    """

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return what a client sends in place of its update.

        Parameters
        ----------
        update : Tensor
            The update, or what the stage before this one made of it.
        where : Where
            The round and the client.
        state : mapping of str to Tensor
            What this stage returned as ``state`` in the client's last round; empty in its first one.
        """
        return Encoded(update)

    def decode(self, replies: Sequence[Encoded], where: Sequence[Where]) -> Sequence[Tensor]:
        """Return a round's updates as they were before ``encode``, or what the strategy receives in their place.

        Parameters
        ----------
        replies : sequence of Encoded
            What arrived, without states, in partition order.
        where : sequence of Where
            The round, and the client of each reply.
        """
        return [reply.update for reply in replies]


class RowStage(ChannelStage):
    """A stage that changes each update by itself, and so many clients' at once: a row for each.

    A row must depend on nothing but its own client. One client's update is a block of one row.
    """

    @abstractmethod
    def encode_rows(self, updates: Tensor, states: Sequence[Tensors], generators: Iterable[Generator]) -> Encoded:
        """Return what C clients send in place of their updates; the first axis of each tensor is the client.

        Parameters
        ----------
        updates : Tensor
            The updates, or what the stage before this one made of them, ``(C, n)``.
        states : sequence of mapping of str to Tensor
            What each client kept in its last round; empty in its first one.
        generators : iterable of Generator
            Each client's generator, which holds until the next one is requested.
        """

    def decode_rows(self, replies: Encoded) -> Tensor:
        """Return the updates ``(C, n)`` of what :meth:`encode_rows` returned, without states."""
        return replies.update

    def encode(self, update: Tensor, where: Where, state: Tensors) -> Encoded:
        """Return what a client sends in place of its update."""
        row, extra, kept = self.encode_rows(update[None], [state], [torch.default_generator])
        return Encoded(
            row[0], {key: rows[0] for key, rows in extra.items()}, {key: rows[0] for key, rows in kept.items()}
        )

    def decode(self, replies: Sequence[Encoded], where: Sequence[Where]) -> Sequence[Tensor]:
        """Return a round's updates."""
        return [
            self.decode_rows(Encoded(reply.update[None], {key: tensor[None] for key, tensor in reply.extra.items()}))[0]
            for reply in replies
        ]


def refuse_integers(stage: ChannelStage, update: Tensor) -> None:
    """Refuse an update of which an earlier stage has made integers, whose values are no longer those of entries.

    Raises
    ------
    InputError
        With the stage.
    """
    if not update.is_floating_point():
        raise InputError(
            f"{type(stage).__name__} needs an update in floating point, got {update.dtype}; put it before the stage "
            "that sends integers, as in channel=[clip,quantise]"
        )
