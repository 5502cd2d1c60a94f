"""Cohorts that the dense kernel trains: the same tasks as one client after another, in one call."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedresearch.data.source import Normalisation
from fedresearch.federation.client_app import Client, Clients, Result, put_results
from fedresearch.federation.records import (
    LR,
    NUM_EXAMPLES,
    NUM_STEPS,
    SERVER_ROUND,
    TRAIN_LOSS,
    UNIFORM,
    arrays_of,
    config_of,
    number,
)
from fedresearch.federation.stack import StackedReplies
from fedresearch.inherited import inherits
from fedresearch.local.dense import Chain, DenseKernel, chain_of, optimizer_of
from fedresearch.local.train import Trained, drift, starting
from fedresearch.local.update import LocalUpdate, Start, Tensors, Term
from fedresearch.seeding import derive_seed

_FLOAT = np.dtype(np.float32)


def chain_of_clients(clients: Clients) -> Chain | None:
    """Return the chain of clients whose training the kernel computes, by SGD or Adam and with a term; else None."""
    update, data = clients.update, clients.data
    is_computed = (
        inherits(update, LocalUpdate, "objective", "correct")
        and not (update.own_model or clients.personal or clients.keeps_optimizer_state or clients.inputs.transforms)
        and [stage.trained for stage in clients.stages] == [clients.parameters]
        and data.x.device.type == "cpu"
        and data.x.dtype == (torch.uint8 if data.normalise else torch.float32)
        and data.y.dtype in (torch.int64, torch.float32)
        and type(data.normalise) in (type(None), Normalisation)
        and optimizer_of(clients.optimizer, 1.0) is not None
    )
    return chain_of(clients.model, data.x.shape[1:]) if is_computed else None


class DenseClients:
    """Trains clients by the kernel.

    Parameters
    ----------
    clients : Clients
        The ClientApp.
    chain : Chain
        What they train, as :func:`chain_of_clients` returns it.
    threads : int
        Threads of the kernel.
    cache_dir : path
        The parent of the folder of compiled code.

    Raises
    ------
    KernelUnavailable
        If the kernel cannot be used on this machine.

    Attributes
    ----------
    trains_all : bool
        Whether :meth:`train` never returns None: the update is FedAvg's.
    """

    def __init__(self, clients: Clients, chain: Chain, threads: int, cache_dir: str | Path) -> None:
        self._clients, data = clients, clients.data
        self._kernel = DenseKernel(chain, data.y.is_floating_point(), threads, cache_dir)
        self._pixels: dict[str, Any] = {}
        if data.normalise:
            zero, one = (data.normalise(torch.full_like(data.x[:1], value)) for value in (0, 1))
            self._pixels = {"scale": (one - zero).ravel().numpy(), "offset": zero.ravel().numpy()}
        self._optimizer_of = functools.lru_cache(maxsize=1)(functools.partial(optimizer_of, clients.optimizer))
        self.trains_all = inherits(clients.update, LocalUpdate, "begin", "term", "end")

    def takes(self, clients: Clients, content: RecordDict, client: Client) -> bool:
        """Return whether the kernel can add the term of a client of an app to its gradient."""
        if self.trains_all:
            return True
        (task,) = clients.tasks([content], [client])
        start = starting(task, clients.model, clients.parameters)
        return _fits(clients.update.term(clients.update.begin(start)), start)

    def train(
        self, content: RecordDict, cohort: Sequence[Client], stack: StackedReplies, first: int
    ) -> dict[int, RecordDict] | None:
        """Put clients' replies into a stack, from a place on, and return the new states of those that keep something.

        None, and nothing is done, if the clients' terms differ in more than their shifts.
        """
        clients, config = self._clients, config_of(content)
        server_round, lr = int(number(config, SERVER_ROUND)), float(number(config, LR))
        partition_ids = [client.partition_id for client in cohort]
        x, y, starts, sizes = clients.data.pool(partition_ids)
        shares, optimizer = clients.availability, self._optimizer_of(lr)
        assert optimizer is not None
        (stage,) = clients.stages
        row = first % stack.num_rows
        out = stack.rows[_FLOAT][row : row + len(cohort)]
        run = functools.partial(
            self._kernel,
            x=x,
            y=y,
            **self._pixels,
            starts=starts,
            sizes=sizes,
            seeds=np.array([derive_seed(clients.seed, "batches", server_round, i) for i in partition_ids], np.uint64),
            shares=None if shares.is_always else np.array([shares(server_round, i) for i in partition_ids]),
            work=clients.work.for_stage(stage),
            params=stack.layout.row(arrays_of(content))[_FLOAT][0],
            optimizer=optimizer,
            out=out,
        )
        if self.trains_all:
            losses, steps = run()
            metrics = {TRAIN_LOSS: losses.tolist(), NUM_STEPS: steps.tolist(), NUM_EXAMPLES: sizes.tolist()}
            stack.put_metrics(first, {**metrics, UNIFORM: [1] * len(cohort)})
            return {}
        tasks = clients.tasks([content] * len(cohort), cohort)
        started = [starting(task, clients.model, stack.layout.places) for task in tasks]
        fixed = [clients.update.begin(start) for start in started]
        terms = [clients.update.term(each) for each in fixed]
        mu, *others = {term.mu if term.anchor else 0.0 for term in terms}
        if others or not all(map(_fits, terms, started)):
            return None
        shift = None
        if any(term.shift for term in terms):
            nothing = {name: torch.zeros_like(tensor) for name, tensor in started[0].anchor.items()}
            shift = np.stack([_row(term.shift or nothing, nothing) for term in terms])
        losses, steps = run(shift=shift, mu=mu)
        drift_of = functools.cache(functools.partial(drift, functools.partial(clients.optimizer, lr=lr)))
        rows = {
            name: torch.from_numpy(out[:, place.columns]).unflatten(1, place.shape)
            for name, place in stack.layout.places.items()
        }

        def result(place: int) -> Result:
            trained = {name: tensor[place] for name, tensor in rows.items()}
            num_steps = int(steps[place])
            end = clients.update.end(trained, fixed[place], functools.partial(drift_of, num_steps))
            return clients.result(tasks[place], Trained(trained, float(losses[place]), num_steps, end, {}))

        return put_results(cohort, map(result, range(len(cohort))), stack, first)


def _fits(term: Term, start: Start) -> bool:
    """Return whether a term has a vector of each parameter's shape, or none, and the received model as its origin."""
    received, shift, anchor = start.anchor, term.shift, term.anchor
    return (
        all(not group or group.keys() == received.keys() for group in (shift, anchor))
        and all(tensor is received[name] for name, tensor in anchor.items())
        and all((tensor.shape, tensor.dtype) == (received[name].shape, torch.float32) for name, tensor in shift.items())
    )


def _row(tensors: Tensors, names: Iterable[str]) -> NDArray[Any]:
    return torch.cat([tensors[name].ravel() for name in names]).numpy()
