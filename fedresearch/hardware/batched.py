"""Clients that train in this process, many at once."""

import functools
import logging
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.modules.conv import _ConvNd

from fedresearch.errors import InputError, one_line
from fedresearch.federation.client_app import Client, Clients
from fedresearch.federation.dense_clients import DenseClients, chain_of_clients
from fedresearch.federation.flower import client_error
from fedresearch.federation.stack import DifferentReply, StackedReplies
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.local.compiled import keep_code_in
from fedresearch.local.library import KernelUnavailable
from fedresearch.local.stacked import StackedTrainer

log = logging.getLogger("fedresearch")

# Clients that train in one call, at most. Their samples and tasks are in memory at once; those of the others are not.
_MOST_AT_ONCE = 4096


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
            If the model cannot be batched.
        """
        assert isinstance(app, Clients)
        super().try_out(app, message, context)
        if self._dense and self._dense.takes(app, message.content, Client(0, context.state)):
            return  # vmap imports PyTorch's compiler, which takes a second
        try:
            app.train_clients([message] * 2, [context, _copy(context)], StackedTrainer(2, False, self._largest))
        except Exception as error:
            reason = one_line(error).partition(". ")[0]  # without vmap's advice, which is for programmers
            raise InputError(
                f"hardware=batched cannot train these clients ({reason}), which can be trained one at a time; "
                "try hardware=cpu or hardware=workers"
            ) from error


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
