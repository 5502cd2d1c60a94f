"""One step of one client before the run, so that what cannot work is told before it costs anything."""

import logging
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict

from fedresearch.apps.client_app import Clients
from fedresearch.data.federated import FederatedData
from fedresearch.errors import InputError, one_line
from fedresearch.local.objective import EVALUATION_BATCH, evaluate

log = logging.getLogger("fedresearch")

# Seconds after which a fork is given up: a library that works with threads may wait for ever in one.
_PATIENCE_S = 120


class CannotTakePart(Exception):
    """A client cannot do its part; ``doing`` says which, the text why."""

    def __init__(self, doing: str, text: str) -> None:
        super().__init__(text)
        self.doing = doing


def rehearse_apart(**arguments: Any) -> None:
    """Rehearse in a fork of this process, so that a client that ends its process ends no run without a word.

    What fails there but does not end it is rehearsed here: not all that works in a process works in its fork. Autograd,
    once its threads have started, does not.

    Parameters
    ----------
    **arguments
        Those of :func:`rehearse`.

    Raises
    ------
    CannotTakePart
        If a client fails, or the fork ends.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads may hold locks: none does that is needed
        fork = context.Process(target=_rehearse_and_send, args=(theirs, arguments))
        fork.start()
    theirs.close()
    try:
        if not ours.poll(_PATIENCE_S):
            log.warning(
                "a client's first step takes more than %g s; it is tried again in the main process", _PATIENCE_S
            )
            works = False
        else:
            works = ours.recv()
            fork.join(_PATIENCE_S)
    except EOFError:
        fork.join()
        code = fork.exitcode or 0
        how = f"with exit code {code}" if code >= 0 else f"by signal {-code}, {signal.strsignal(-code)}"
        raise CannotTakePart("train", f"the client's process ended {how}") from None
    finally:
        fork.kill()
        fork.join()
    if not works:
        rehearse(**arguments)


def _rehearse_and_send(connection: Connection, arguments: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)  # those that the main process has started are not here
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # the main process hears them, and ends this one
    try:
        rehearse(**arguments)
    except Exception:
        connection.send(False)
    else:
        connection.send(True)


def rehearse(
    message: Message,
    try_out: Callable[[Clients, Message, Context], None],
    clients_on: Callable[[FederatedData], Clients],
    training_data: FederatedData,
    data: FederatedData,
    batch_size: int,
) -> None:
    """Let a client answer a message on two samples, and on one where some batch is one; nothing of it is kept.

    Parameters
    ----------
    message : Message
        The first that the server sends.
    try_out : callable
        Lets an app answer a message as clients will.
    clients_on : callable
        Makes clients that take one step, on given data.
    training_data, data : FederatedData
        What the clients train on, and validate on.
    batch_size : int
        Samples in a batch; 0: all of a client's.

    Raises
    ------
    CannotTakePart
        If a client fails.
    InputError
        If the hardware cannot run clients that do not fail.
    """
    sizes = [len(rows) for rows in training_data.train]
    alone = [i for i, size in enumerate(sizes) if size == 1 or (batch_size and size % batch_size == 1)]
    for num_samples, partition_id in [(2, sizes.index(max(sizes))), *((1, i) for i in alone[:1])]:
        try:
            clients = clients_on(training_data.sample(partition_id, num_samples))
            try_out(clients, message, Context(1, 2, {"partition-id": 0}, RecordDict(), {}))
        except InputError:  # of where the clients run, which is not the client's fault
            raise
        except (Exception, SystemExit) as error:
            hint = f" (the last batch of partitions {alone} is one sample; try another local.batch_size)"
            raise CannotTakePart("train", _said(error) + (hint if num_samples == 1 else "")) from error
    alone = [i for i, rows in enumerate(data.validation) if len(rows) % EVALUATION_BATCH == 1]
    if alone:
        x, y = data.validation_samples(alone[0])
        try:
            evaluate(clients.model, x[:1], y[:1])
        except (Exception, SystemExit) as error:
            hint = f" (partitions {alone} validate on a batch of one sample; try another validation.fraction)"
            raise CannotTakePart("be evaluated", _said(error) + hint) from error


def _said(error: BaseException) -> str:
    return f"it ends the run, by {error!r}" if isinstance(error, SystemExit) else one_line(error)
