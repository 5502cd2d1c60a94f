"""Clients that train in this process, many at once."""

import functools
import logging
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch.nn.modules.conv import _ConvNd

from fedresearch.errors import InputError, one_line
from fedresearch.federation.client_app import Client, Clients
from fedresearch.federation.dense_clients import DenseClients, chain_of_clients
from fedresearch.federation.flower import client_error
from fedresearch.federation.layout import Layout
from fedresearch.federation.records import array_record, arrays_of, view
from fedresearch.federation.stack import DifferentReply, StackedReplies
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.hardware.ordered import refuse_hooks
from fedresearch.local.compiled import keep_code_in
from fedresearch.local.library import KernelUnavailable
from fedresearch.local.stacked import StackedTrainer
from fedresearch.local.train import LocalWork

log = logging.getLogger("fedresearch")

# Clients that train in one call, at most. Their samples and tasks are in memory at once; those of the others are not.
_MOST_AT_ONCE = 4096
# Steps in which clients that train together are compared with one at a time, and the rounding of double precision.
_STEPS, _ROUNDING = 3, 1e-8


class BatchedGrid(InProcessGrid):
    """A Grid whose clients train together, with the steps of many in one call, and evaluate one after another.

    Parameters
    ----------
    client_app : Clients
        The app of every client.
    num_supernodes : int
        Number of clients.
    chunk : int or "auto"
        Clients in one call; auto: as many as fit a core's cache.
    compile : "auto" or False
        Whether to compile the step; auto: if a compiler is installed.
    cache_dir : str
        Folder of the compiled code.

    Raises
    ------
    InputError
        If other users may have written into this folder.
    """

    def __init__(
        self,
        client_app: Clients,
        num_supernodes: int,
        chunk: int | Literal["auto"],
        compile: Literal["auto", False],
        cache_dir: str,
    ) -> None:
        super().__init__(client_app, num_supernodes)
        refuse_hooks(client_app)
        if compile == "auto":
            keep_code_in(cache_dir)
        self._dense = _dense(client_app, cache_dir) if compile == "auto" else None
        self._clients = client_app
        on_cpu = client_app.data.x.device.type == "cpu"
        if on_cpu and not self._dense and any(isinstance(module, _ConvNd) for module in client_app.model.modules()):
            log.warning("the model has convolutions, which train faster one client after another; try hardware=cpu")
        self._largest = max(len(rows) for rows in client_app.data.train)
        self._trainer = StackedTrainer(None if chunk == "auto" else chunk, compile == "auto", self._largest)
        self._num_lanes = functools.cache(functools.partial(self._trainer.num_lanes, client_app.model))

    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        num_lanes = self._num_lanes(len(stack))
        trainer = functools.partial(self._trainer, num_lanes=num_lanes)
        # Lanes are of use for more clients than lanes: some begin when others end.
        num_rows = stack.num_rows if self._dense else max(stack.num_rows, 4 * num_lanes)
        for first, stop in _calls(len(stack), num_rows):
            cohort = [self._client(node_id) for node_id in stack.node_ids[first:stop]]
            try:
                states = self._dense.train(content, cohort, stack, first) if self._dense else None
                if states is None:
                    states = clients.train_stacked(content, cohort, stack, first, trainer)
            except DifferentReply:
                raise
            except Exception:
                return dict.fromkeys(range(len(stack)), traceback.format_exc())
            self._keep_all(states)
        return {}

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        """Train the clients together, and answer other messages one after another."""
        if any(message.metadata.message_type != MessageType.TRAIN for message in messages):
            return super()._answer(messages)
        contexts = [self._context(message) for message in messages]
        try:
            replies = self._clients.train_clients(messages, contexts, self._trainer)
        except Exception:
            return [client_error(traceback.format_exc(), reply_to=message) for message in messages]
        for context in contexts:
            self._keep(context.node_id, context.state)
        return replies

    def try_out(self, app: ClientApp, message: Message, context: Context) -> None:
        """Train a client of an app, and two together if the kernel leaves it to that, without compiling the step.

        Raises
        ------
        InputError
            If the model cannot be batched, or if clients that train together have other numbers than one at a time.
        """
        assert isinstance(app, Clients)
        before = _attributes(app)
        super().try_out(app, message, context)
        if shared := [name for name, value in _attributes(app).items() if before.get(name) is not value]:
            raise InputError(
                f"hardware=batched trains clients together, and strategy.client keeps {', '.join(shared)} in "
                "attributes, which they would share; return such values from begin, or try hardware=cpu or "
                "hardware=workers"
            )
        if self._dense and self._dense.takes(app, message.content, Client(0, context.state)):
            return  # vmap imports PyTorch's compiler, which takes a second
        try:
            app.train_clients([message] * 2, [context, _copy(context)], StackedTrainer(2, False, self._largest))
            differ = _differ_together(app.in_double(LocalWork(None, _STEPS, 0)), message.content)
        except Exception as error:
            reason = one_line(error).partition(". ")[0]  # without vmap's advice, which is for programmers
            raise InputError(
                f"hardware=batched cannot train these clients ({reason}), which can be trained one at a time; "
                "try hardware=cpu or hardware=workers"
            ) from error
        if differ:
            raise InputError(
                "hardware=batched trains these clients to other numbers than one at a time: the model changes its "
                "buffers, has a parameter without a gradient, draws, or looks at a whole batch, or the "
                "optimizer keeps more than tensors; try hardware=cpu or hardware=workers"
            )


def _attributes(clients: Clients) -> dict[str, Any]:
    """Return the attributes of the client half of a strategy, also of that of the clients' own models."""
    return {**vars(clients.update), **vars(clients.update.own_model or clients.update)}


def _differ_together(clients: Clients, content: RecordDict) -> bool:
    """Return whether clients in double precision have other numbers together with a twin than one after another.

    Rounding is small there. A model that cannot compute so is not compared.
    """
    double = RecordDict(
        {
            key: array_record({name: _in_double(view(array)) for name, array in record.items()})
            if isinstance(record, ArrayRecord)
            else record
            for key, record in content.items()
        }
    )
    try:
        alone = _trained(clients, double, None)
    except Exception:  # of the model's code, which may be for single precision alone
        return False
    together = _trained(clients, double, StackedTrainer(2, False, _STEPS))
    return any(
        not np.allclose(one, other, rtol=0, atol=_ROUNDING * max(1, np.nanmax(np.abs(one), initial=0)), equal_nan=True)
        for one, other in zip(alone, together, strict=True)
    )


def _trained(clients: Clients, content: RecordDict, trainer: StackedTrainer | None) -> list[NDArray[Any]]:
    """Return all numbers that a client and its twin send and keep."""
    layout = Layout(arrays_of(content), clients.parameters)
    cohort = [Client(0, RecordDict())] * 2
    stack = StackedReplies(layout, [1, 2], layout.rows(2), lambda _, content: Message(content, 1, ""))
    kept = clients.train_stacked(content, cohort, stack, 0, trainer)
    records = [record for state in kept.values() for record in state.array_records.values()]
    return [
        *stack.rows.values(),
        *(array for group in stack.sent.values() for array in group.values()),
        *(np.asarray(values, float) for values in stack.metrics.values()),
        *(view(array) for record in records for array in record.values()),
    ]


def _in_double(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _calls(num_clients: int, num_rows: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last place, exclusive, of clients that train in one call, and in one set of rows."""
    for start in range(0, num_clients, num_rows):
        end = min(start + num_rows, num_clients)
        for first in range(start, end, _MOST_AT_ONCE):
            yield first, min(first + _MOST_AT_ONCE, end)


def _dense(clients: Clients, cache_dir: str) -> DenseClients | None:
    """Return what trains the clients in one call, if they are such clients and this machine can compile it."""
    chain = chain_of_clients(clients)
    if chain is None:
        return None
    try:
        return DenseClients(clients, chain, num_cores(), cache_dir)
    except KernelUnavailable as error:
        log.warning("the clients train without the dense kernel, which is faster: %s", error)
        return None


def _copy(context: Context) -> Context:
    """Return a context with a copy of the state; clients replace its records and never write into them."""
    return Context(context.run_id, context.node_id, context.node_config, context.state.copy(), context.run_config)
