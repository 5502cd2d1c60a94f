"""One step of one client before the run, so that a broken experiment fails early."""

import copy
import logging
import multiprocessing
import signal
import sys
import warnings
from multiprocessing.connection import Connection

import torch
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict

from fedresearch.errors import InputError, one_line, raised_at
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.client_app import Clients
from fedresearch.federation.cohort_grid import CohortGrid
from fedresearch.federation.generators import restored_generators
from fedresearch.federation.hooks import Hooks
from fedresearch.federation.nodes import NodeGrid
from fedresearch.federation.records import view
from fedresearch.local.objective import EVALUATION_BATCH, evaluate
from fedresearch.local.train import LocalWork

log = logging.getLogger("fedresearch")

# Seconds before a fork is killed: a library with threads may wait forever in a fork.
_FORK_TIMEOUT_S = 120


class _CannotTakePart(Exception):
    """A client cannot do a task; ``doing`` is the task, and the text is the reason."""

    def __init__(self, doing: str, text: str) -> None:
        super().__init__(text)
        self.doing = doing


def rehearse(experiment: Experiment) -> None:
    """Let a client answer the first message of the run on a copy of the model, and discard the reply.

    The client trains on two samples, and on one sample if some client has a batch of one. If possible this happens in a
    fork, so that a client that ends its process does not end the run without a message.

    Raises
    ------
    InputError
        If the client fails, the strategy sends no message, or the hardware cannot run clients.
    """
    if not experiment.num_clients:
        return
    message = _first_message(experiment)
    # A GPU, the connection of a SuperLink and some libraries of macOS do not survive a fork.
    forks = sys.platform == "linux" and experiment.device.type == "cpu" and not isinstance(experiment.grid, NodeGrid)
    try:
        with restored_generators():
            (_answer_in_a_fork if forks else _answer)(experiment, message)
    except _CannotTakePart as error:
        config, choices = experiment.config, experiment.choices
        others = ["strategy", *["transform"] * bool(config.transform), *["channel"] * bool(config.channel)]
        through = " and ".join(f"{group}={choices[group]}" for group in others)
        raise InputError(
            f"model={choices['model']} cannot {error.doing} on dataset={choices['dataset']} with {through}: {error}"
        ) from error


def _first_message(experiment: Experiment) -> Message:
    """Return the first message that the strategy sends, in the first round in which a client trains."""
    for server_round in range(1, experiment.config.federation.num_rounds + 1):
        if sampled := experiment.sampled(server_round):
            break
    else:
        raise InputError(
            f"availability={experiment.choices['availability']}: no client trains in any round; try availability=always"
        )
    cohort = CohortGrid(experiment.grid, sorted(set(sampled)))
    config = ConfigRecord(dict(experiment.client_config(server_round)))
    hooks = Hooks(experiment.new_strategy(), experiment.config.seed)
    messages = hooks.configure_train(server_round, experiment.initial_arrays, config, cohort)
    if not messages:
        raise InputError(
            f"strategy={experiment.choices['strategy']}: it sends no message in round {server_round}, so no client "
            "trains"
        )
    return messages[0]


def _answer_in_a_fork(experiment: Experiment, message: Message) -> None:
    """Answer in a fork of this process.

    If it fails there without ending the fork, try again in this process: some libraries work in a process but not in
    its fork, such as autograd after its threads have started.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # other threads may hold locks, which the fork does not need
        fork = context.Process(target=_answer_and_report, args=(theirs, experiment, message))
        fork.start()
    theirs.close()
    try:
        if not ours.poll(_FORK_TIMEOUT_S):
            log.warning(
                "the first step of a client takes more than %g s; trying again in the main process", _FORK_TIMEOUT_S
            )
            works = False
        else:
            works = ours.recv()
            fork.join(_FORK_TIMEOUT_S)
    except EOFError:
        fork.join()
        code = fork.exitcode or 0
        how = f"with exit code {code}" if code >= 0 else f"by signal {-code}, {signal.strsignal(-code)}"
        raise _CannotTakePart("train", f"the client's process ended {how}") from None
    finally:
        fork.kill()
        fork.join()
    if not works:
        _answer(experiment, message)


def _answer_and_report(connection: Connection, experiment: Experiment, message: Message) -> None:
    torch.set_num_threads(1)  # the main process's threads do not exist here
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # the main process handles them and ends this one
    try:
        _answer(experiment, message)
    except Exception:
        connection.send(False)
    else:
        connection.send(True)


def _answer(experiment: Experiment, message: Message) -> None:
    """Answer a message on two samples, and on one sample if some client has a batch of one."""
    training_data, data = experiment.training_data, experiment.data
    batch_size = experiment.config.local.batch_size

    sizes = [len(rows) for rows in training_data.train]
    alone = [i for i, size in enumerate(sizes) if size == 1 or (batch_size and size % batch_size == 1)]
    for num_samples, partition_id in [(2, sizes.index(max(sizes))), *((1, i) for i in alone[:1])]:
        try:
            samples = training_data.sample(partition_id, num_samples)
            clients = experiment.new_client_app(copy.deepcopy(experiment.model), samples, LocalWork(None, 1, 0))
            experiment.grid.try_out(clients, message, Context(1, 2, {"partition-id": 0}, RecordDict(), {}))
            if experiment.device.type == "cpu":  # some algorithms of a GPU do not repeat
                _refuse_memory(clients, message)
        except (InputError, _CannotTakePart):  # from the hardware, not the client
            raise
        except (Exception, SystemExit) as error:
            hint = f" (the last batch of partitions {alone} is one sample; try another local.batch_size)"
            raise _CannotTakePart("train", _reason(error) + (hint if num_samples == 1 else "")) from error
    alone = [i for i, rows in enumerate(data.validation) if len(rows) % EVALUATION_BATCH == 1]
    if alone:
        x, y = data.validation_samples(alone[0])
        try:
            evaluate(clients.model, x[:1], y[:1], experiment.inputs.prepare)
        except (Exception, SystemExit) as error:
            hint = f" (partitions {alone} validate on a batch of one sample; try another validation.fraction)"
            raise _CannotTakePart("be evaluated", _reason(error) + hint) from error


def _refuse_memory(clients: Clients, message: Message) -> None:
    """Reject clients that answer one message in two ways: on other hardware, others would have come before."""
    replies = (clients(message, Context(1, 2, {"partition-id": 0}, RecordDict(), {})) for _ in range(2))
    first, second = (
        {
            f"{key}/{name}": view(value).tobytes() if isinstance(value, Array) else repr(value)
            for key, record in reply.content.items()
            for name, value in record.items()
        }
        for reply in replies
    )
    if different := [name for name in first if first[name] != second.get(name)]:
        raise _CannotTakePart(
            "train",
            f"a client's second answer to one message differs from the first ({different[0]}): something keeps a value "
            "between clients, changes what it was given in place, or draws from a generator of its own; keep values in "
            "buffers of the model or in LocalUpdate's End(kept=...), and draw from the global generators",
        )


def _reason(error: BaseException) -> str:
    return f"{f'it ends the run, by {error!r}' if isinstance(error, SystemExit) else one_line(error)}{raised_at(error)}"
