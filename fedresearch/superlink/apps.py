"""The ServerApp and ClientApp that ``pyproject.toml`` names, for a SuperLink and its SuperNodes.

The run config holds an experiment in one string: resolved (``experiment``, from ``hardware=superlink``), or as
overrides to compose (``overrides``, from ``flwr run . --run-config 'overrides="strategy=fedprox"'``). A SuperNode
starts a process for each message, so it does not import what the message does not need.
"""

import functools
import gc
import logging
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedresearch import config
from fedresearch.errors import InputError, MarkedFormatter
from fedresearch.experiment.request import RunRequest
from fedresearch.federation.flower import client_error
from fedresearch.federation.nodes import ROWS, NodeGrid, answer_query
from fedresearch.superlink.run_config import ERROR, EXPERIMENT, OVERRIDES

if TYPE_CHECKING:
    from fedresearch.federation.client_app import Clients

_SPLITS = ("train", "validation")

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the experiment on the SuperNodes that connect."""
    _mark_warnings()
    with _interruptible():
        try:
            nodes = NodeGrid(grid)
            nodes.query_new_nodes()  # they reply while this process imports torch
            _one_thread()
            submitted = str(context.run_config.get(EXPERIMENT, ""))
            if submitted:
                request = RunRequest.loads(submitted)
            else:
                request = _compose(str(context.run_config[OVERRIDES]), len(nodes.get_node_ids()))
            nodes.num_supernodes = request.config.federation.num_supernodes
            nodes.timeout_s = request.config.hardware["timeout_s"]

            from fedresearch.experiment.run import run_experiment

            gc.freeze()  # Flower's Bulyan collects garbage for each client, and none is in what was imported
            run_experiment(request, nodes)
        except Exception as error:
            reported = error if isinstance(error, InputError) else config.explain(error)
            for line in reported.args if reported else ():
                print(f"{ERROR}{line}", file=sys.stderr)
            raise


client_app.query()(answer_query)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train as the experiment's ClientApp does."""
    return _answer(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate as the experiment's ClientApp does."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    try:
        _one_thread()
        submitted = str(context.run_config.get(EXPERIMENT, ""))
        if submitted:
            clients = _submitted_clients(RunRequest.loads(submitted), context)
        else:
            clients = _composed_clients(str(context.run_config[OVERRIDES]), int(context.node_config["num-partitions"]))
        return clients(message, context)
    except Exception:  # Flower would send only the last line
        return client_error(traceback.format_exc(), reply_to=message)


@functools.lru_cache(maxsize=1)  # in Flower's simulation, one process answers many messages
def _composed_clients(overrides: str, num_partitions: int) -> "Clients":
    from fedresearch.experiment.experiment import Experiment

    request = _compose(overrides, num_partitions)
    return Experiment(request.config, request.choices).client_app


def _submitted_clients(request: RunRequest, context: Context) -> "Clients":
    """Return the ClientApp of one node. It keeps its rows, since partitioning takes as long as everything else."""
    import numpy as np

    from fedresearch.experiment.experiment import Experiment
    from fedresearch.federation.records import array_record

    partition_id = int(context.node_config["partition-id"])
    rows = None
    if ROWS in context.state:
        own = context.state.array_records[ROWS]
        nothing = [np.zeros(0, np.int64)] * int(context.node_config["num-partitions"])
        train, validation = (
            [*nothing[:partition_id], own[split].numpy(), *nothing[partition_id + 1 :]] for split in _SPLITS
        )
        rows = train, validation
    experiment = Experiment(request.config, request.choices, rows=rows)
    if rows is None and not request.config.strategy["pooled"]:
        context.state[ROWS] = array_record({split: getattr(experiment.data, split)[partition_id] for split in _SPLITS})
    return experiment.client_app


def _compose(overrides: str, num_supernodes: int) -> RunRequest:
    """Compose the default experiment with overrides, for this number of SuperNodes unless the overrides set it."""
    from fedresearch.config.help_text import CONF

    words = ["hardware=superlink", f"federation.num_supernodes={num_supernodes}", *shlex.split(overrides)]
    composed, choices, directory = config.compose(CONF, words)
    command = ["flwr", "run", ".", "--run-config", f'overrides="{overrides}"']
    return RunRequest(composed, choices, directory, words, command, [])


def _mark_warnings() -> None:
    """Print log lines as the command does, for which Hydra configures logging; the submitting command reads them."""
    handler = logging.lastResort  # of all loggers without another one
    assert handler is not None
    handler.setFormatter(MarkedFormatter())
    handler.setLevel(logging.INFO)
    logging.getLogger("fedresearch").setLevel(logging.INFO)


def _one_thread() -> None:
    """Fix the order of sums on any number of cores, as on all other hardware."""
    from fedresearch.hardware.threads import limit_threads

    limit_threads(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Stop the run before a signal stops this process, so that its record says so."""
    if threading.current_thread() is not threading.main_thread():  # in Flower's simulation
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        for number in flowers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    flowers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, flowers[signal.SIGTERM])
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in flowers.items():
            signal.signal(number, handler)
