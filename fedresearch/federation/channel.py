"""The channel: a client's update passes its stages in their order, and on the server in reverse order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeGuard

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Generator, Tensor

from fedresearch.channel.stage import ChannelStage, Encoded, RowStage, Tensors, Where
from fedresearch.errors import InputError
from fedresearch.federation.generators import seeded_generators
from fedresearch.federation.held_array import num_bytes
from fedresearch.federation.records import ARRAYS, arrays_of, tensor_record, tensors
from fedresearch.federation.stack import StackedReplies
from fedresearch.federation.update_sums import rows_at_once
from fedresearch.inherited import inherits
from fedresearch.local.generators import Drawn, drawing_nothing
from fedresearch.seeding import derive_seed

CHANNEL = "channel"  # the record of a reply with the update and the extra tensors of the stages
_UPDATE = "update"


class Channel:
    """The stages between the clients and the strategy.

    Parameters
    ----------
    stages : mapping of str to ChannelStage, optional
        The stages by name, in the order in which an update passes them; None: models are sent as they are.
    parameters : mapping of str to str, optional
        The name of each parameter to its first one. Those in floating point are the update, each once; all other arrays
        are sent as they are.
    seed : int
        The run's seed.
    """

    def __init__(
        self,
        stages: Mapping[str, ChannelStage] | None = None,
        parameters: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.stages = stages or {}
        self._first, self._seed = parameters or {}, seed
        self._is_tried = False
        self._row_stages = {name: stage for name, stage in self.stages.items() if _takes_rows(stage)}

    @property
    def takes_rows(self) -> bool:
        """Whether :meth:`pass_rows` does what :meth:`encode` and :meth:`decode` do with messages: all stages can."""
        return len(self._row_stages) == len(self.stages)

    def encode(
        self, content: RecordDict, received: Tensors, where: Where, states: Mapping[str, Tensors]
    ) -> dict[str, Tensors]:
        """Put what is sent into a reply's content, in place of the trained parameters; return the new states.

        Parameters
        ----------
        content : RecordDict
            The content of a client's reply.
        received : mapping of str to Tensor
            The arrays that the client received.
        where : Where
            The round and the client.
        states : mapping of str to mapping
            What the stages kept in the client's last round, by their names.
        """
        trained = tensors(content, ARRAYS)
        names = self._names(trained)
        if not names:
            return {}
        update = torch.cat([(trained[name] - received[name].cpu()).ravel() for name in names])
        sent: dict[str, Tensor] = {}
        kept = {}
        for number, (name, stage) in enumerate(self.stages.items()):
            state = states.get(name, {})
            with seeded_generators(derive_seed(self._seed, "encode", *where, number)):
                encoded = stage.encode(update, where, state)
            if not isinstance(encoded, Encoded):
                raise InputError(f"channel.{name}: encode must return an Encoded, got {type(encoded).__name__}")
            parts = encoded.update, *encoded.extra.values(), *encoded.state.values()
            _refuse_others(f"channel.{name}: encode must return tensors", parts)
            update = encoded.update
            sent |= {f"{name}/{key}": tensor for key, tensor in encoded.extra.items()}
            if state or encoded.state:
                kept[name] = encoded.state
        apart = {name: array for name, array in arrays_of(content).items() if self._first.get(name) not in names}
        content[ARRAYS] = ArrayRecord(apart)
        content[CHANNEL] = tensor_record({_UPDATE: update, **sent})
        return kept

    def decode(self, replies: Sequence[Message], messages: Sequence[Message], where: Sequence[Where]) -> None:
        """Put models into a round's replies, in place of what was sent for them.

        Parameters
        ----------
        replies : sequence of Message
            Replies without errors, in partition order.
        messages : sequence of Message
            The messages of the round, with the arrays that the clients received.
        where : sequence of Where
            The round, and the client of each reply.

        Raises
        ------
        InputError
            If a stage returns something other than tensors, or updates of another number or length.
        """
        encoded = [(reply, at) for reply, at in zip(replies, where, strict=True) if CHANNEL in reply.content]
        if not encoded:
            return
        sent = [tensors(reply.content, CHANNEL) for reply, _ in encoded]
        server_round, where = where[0].server_round, [at for _, at in encoded]
        updates: Sequence[Tensor] = [each[_UPDATE] for each in sent]
        for number, (name, stage) in reversed([*enumerate(self.stages.items())]):
            extras = [
                {key.removeprefix(f"{name}/"): tensor for key, tensor in each.items() if key.startswith(f"{name}/")}
                for each in sent
            ]
            arrived = [Encoded(update, extra) for update, extra in zip(updates, extras, strict=True)]
            with seeded_generators(derive_seed(self._seed, "decode", server_round, number)):
                decoded: Any = stage.decode(arrived, where)
            updates = [*decoded] if isinstance(decoded, Iterable) else [decoded]
            _refuse_others(f"channel.{name}: decode must return tensors", updates)
            if len(updates) != len(arrived):
                raise InputError(f"channel.{name}: decode must return {len(arrived)} updates, got {len(updates)}")
        received = {message.metadata.dst_node_id: arrays_of(message.content) for message in messages}
        for (reply, _), update in zip(encoded, updates, strict=True):
            del reply.content[CHANNEL]
            reply.content[ARRAYS] = self._model(received[reply.metadata.src_node_id], update, arrays_of(reply.content))

    def pass_rows(
        self,
        stack: StackedReplies,
        received: ArrayRecord,
        where: Sequence[Where],
        states: Sequence[Mapping[str, Tensors]],
    ) -> list[dict[str, Tensors] | None]:
        """Put models into a stack's rows as the server decodes them, and return the stages' new states of each client.

        Parameters
        ----------
        stack : StackedReplies
            The trained models.
        received : ArrayRecord
            The arrays that the clients received.
        where : sequence of Where
            The round, and the client of each row.
        states : sequence of mapping of str to mapping
            What the stages kept in each client's last round, by their names.

        Returns
        -------
        list
            None for a client that sends a number that is not finite, whose state stays as it was.
        """
        places, before = stack.layout.places, received.to_torch_state_dict()
        names = self._names(before)
        if not names:
            return [{} for _ in where]
        passes = {name: self._first[name] for name in places if self._first.get(name) in names}
        sizes = [before[name].numel() for name in names]
        kept: list[dict[str, Tensors] | None] = []
        at_once = rows_at_once(stack.layout, len(stack))
        for first in range(0, len(stack), at_once):
            some = slice(first, first + at_once)
            rows = {
                name: torch.as_tensor(stack.held[places[name].dtype])[some, places[name].columns] for name in passes
            }
            update = torch.cat([rows[name].cpu() - before[name].ravel() for name in names], dim=1)
            is_finite = torch.from_numpy(stack.rest_is_finite(some)) & update.isfinite().all(dim=1)
            try:
                with nullcontext() if self._is_tried else drawing_nothing():
                    sent, update, own = self._pass(update, where[some], states[some])
            except Drawn as error:
                raise InputError(
                    f"channel={','.join(self._row_stages)}: {error} while it passes rows, where each client has a "
                    "generator of its own; draw from the argument generators, or extend ChannelStage"
                ) from error
            self._is_tried = True
            for part in sent.values():
                is_finite &= part.isfinite().reshape(len(part), -1).all(dim=1)
            kept += [new if finite else None for new, finite in zip(own, is_finite.tolist(), strict=True)]
            parts = dict(zip(names, update.split(sizes, dim=1), strict=True))
            for name, of in passes.items():
                rows[name].copy_(before[of].ravel() + parts[of])
        replaced = [(name, places[name].dtype, places[name].shape) for name in passes]
        stack.saved_bytes = _num_bytes(replaced) - _num_bytes(
            (name, array.dtype, array.shape) for name, array in ((name, rows[0].numpy()) for name, rows in sent.items())
        )
        return kept

    def _pass(
        self, update: Tensor, where: Sequence[Where], states: Sequence[Mapping[str, Tensors]]
    ) -> tuple[dict[str, Tensor], Tensor, list[dict[str, Tensors]]]:
        """Return what some clients send for their updates, the decoded updates, and the stages' new states."""
        kept: list[dict[str, Tensors]] = [{} for _ in where]
        extras = {}
        for number, (name, stage) in enumerate(self._row_stages.items()):
            generators = self._generators(where, number)
            update, extras[name], new = stage.encode_rows(update, [state.get(name, {}) for state in states], generators)
            for place, own in enumerate(kept):
                if new or name in states[place]:
                    own[name] = {key: rows[place] for key, rows in new.items()}
        sent = {_UPDATE: update}
        sent |= {f"{name}/{key}": rows for name, extra in extras.items() for key, rows in extra.items()}
        for name, stage in reversed(self._row_stages.items()):
            update = stage.decode_rows(Encoded(update, extras[name]))
        return sent, update, kept

    def _generators(self, where: Sequence[Where], number: int) -> Iterator[Generator]:
        """Yield the generator of each client in a stage."""
        generator = Generator()
        for at in where:
            yield generator.manual_seed(derive_seed(self._seed, "encode", *at, number))

    def _model(self, received: ArrayRecord, update: Tensor, apart: ArrayRecord) -> ArrayRecord:
        """Return the received parameters plus an update, and the arrays that were sent as they are."""
        before = received.to_torch_state_dict()
        names = self._names(before)
        sizes = [before[name].numel() for name in names]
        if update.shape != (sum(sizes),):
            raise InputError(
                f"the channel's first stage must decode an update of shape ({sum(sizes)},), got {tuple(update.shape)}"
            )
        parts = dict(zip(names, update.split(sizes), strict=True))
        model = tensor_record({name: before[name] + part.view_as(before[name]) for name, part in parts.items()})
        first = {name: self._first.get(name, name) for name in before}
        return ArrayRecord({name: model[first[name]] if first[name] in model else apart[name] for name in before})

    def _names(self, arrays: Tensors) -> list[str]:
        return sorted(n for n in arrays if self._first.get(n) == n and arrays[n].is_floating_point())


def _takes_rows(stage: ChannelStage) -> TypeGuard[RowStage]:
    """Return whether a stage does all with rows: nothing below RowStage does something else with one update."""
    return isinstance(stage, RowStage) and inherits(stage, RowStage, "encode", "decode")


def _num_bytes(arrays: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> int:
    return sum(len(name) + num_bytes(dtype, shape) for name, dtype, shape in arrays)


def _refuse_others(what: str, parts: Iterable[object]) -> None:
    """Refuse what is not a tensor among the parts of what a stage returned."""
    for part in parts:
        if not isinstance(part, Tensor):
            raise InputError(f"{what}, got {type(part).__name__}")
