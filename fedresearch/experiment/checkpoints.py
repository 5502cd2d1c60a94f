"""A run's checkpoints: what they hold, when they are written, and how they are restored."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.model import BEST, save_clients, save_model
from fedresearch.experiment.resuming import digest_for_resume
from fedresearch.federation.client_app import own_arrays
from fedresearch.federation.flower import FIRST_NODE_ID
from fedresearch.federation.measures import Row
from fedresearch.federation.state import Packer, UnsupportedValue, unpack, unpack_object
from fedresearch.runs.checkpoint import read_checkpoints, write_checkpoint
from fedresearch.runs.directory import History, RunDirectory

# With checkpoint.every=auto, the share of the time for writing checkpoints.
_SHARE = 0.04


class Checkpoints:
    """Writes a run's checkpoints when they are due, and its best model.

    Parameters
    ----------
    experiment : Experiment
        The experiment, whose strategy, channel and clients are saved.
    run : RunDirectory
        The run's directory.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self._experiment, self._run = experiment, run
        self._every, self._keep = experiment.config.checkpoint.every, experiment.config.checkpoint.keep
        self._column = experiment.config.checkpoint.best
        self._digest = digest_for_resume(experiment.config)
        self._next = 0.0  # by time.perf_counter
        self._last = run.history.num_rounds

    def after(self, row: Row, arrays: ArrayRecord, is_best: bool) -> None:
        """Write the best model and the checkpoint if they are due after a round; after round 0 neither is.

        Parameters
        ----------
        row : dict
            The round's numbers.
        arrays : ArrayRecord
            The new global model.
        is_best : bool
            Whether the round is the best one so far.

        Raises
        ------
        InputError
            If the row does not have the column ``checkpoint.best``, one that the strategy measures itself.
        """
        if not row["round"]:
            return
        if self._column is not None:
            if "eval/loss" in row and not isinstance(row.get(self._column), int | float):
                columns = ", ".join(name for name, value in row.items() if isinstance(value, int | float))
                raise InputError(f"checkpoint.best={self._column} is not a column of this run, which has {columns}")
            if is_best:
                save_result(self._experiment, self._run.path / BEST, arrays, row)
        due = time.perf_counter() >= self._next if self._every == "auto" else row["round"] % (self._every or 1) == 0
        if self._every and due:
            self.write(arrays)

    def write(self, arrays: ArrayRecord) -> None:
        """Write a checkpoint after the last round that was logged.

        Raises
        ------
        InputError
            If a checkpoint cannot hold a value.
        """
        if not self._every or self._last == self._run.history.num_rounds:
            return
        started = time.perf_counter()
        packer = Packer()
        with _explaining_unknown():
            states = dict(sorted(self._experiment.grid.states.items()))  # processes reply in any order
            plain = {
                "history": vars(self._run.history),
                "arrays": packer.pack(arrays, "arrays"),
                "strategy": packer.pack_object(self._experiment.strategy, "strategy"),
                "channel": _pack_channel(packer, self._experiment),
                "states": packer.pack(states, "states"),
            }
        self._run.sync()
        write_checkpoint(self._run.path, self._run.history.num_rounds, plain, packer.arrays, self._keep, self._digest)
        self._last = self._run.history.num_rounds
        ended = time.perf_counter()
        self._next = ended + (ended - started) / _SHARE


def save_result(experiment: Experiment, path: Path, arrays: ArrayRecord, row: Row) -> None:
    """Write the clients' own models, if they keep any, and then the global model of a round.

    Raises
    ------
    Unwritable
        If the disk has no room for them.
    """
    state = experiment.state_dict(arrays)
    if experiment.client_app.keeps_own_model:
        kept = {node_id - FIRST_NODE_ID: own_arrays(state) for node_id, state in experiment.grid.states.items()}
        own = {client: arrays for client, arrays in sorted(kept.items()) if arrays}
        save_clients(path, own, experiment.data.num_partitions, state)
    save_model(path, state, {"round": str(row["round"])} if path.name == BEST else None)


def refuse_unsupported_state(experiment: Experiment) -> None:
    """Reject a strategy or a channel whose state a checkpoint cannot hold, if checkpoints are on.

    Raises
    ------
    InputError
        With the attribute.
    """
    if experiment.config.checkpoint.every:
        with _explaining_unknown():
            packer = Packer()
            packer.pack_object(experiment.strategy, "strategy")
            _pack_channel(packer, experiment)


def _pack_channel(packer: Packer, experiment: Experiment) -> dict[str, Any]:
    """Return the packed attributes of the channel's stages, by their names."""
    return {name: packer.pack_object(stage, f"channel.{name}") for name, stage in experiment.channel.stages.items()}


@contextmanager
def _explaining_unknown() -> Iterator[None]:
    try:
        yield
    except UnsupportedValue as error:
        raise InputError(f"{error}, which a checkpoint cannot hold; try checkpoint.every=0") from error


def restore(experiment: Experiment, directory: Path) -> tuple[History, ArrayRecord]:
    """Restore the states of the strategy, of the channel and of the clients from the newest intact checkpoint.

    Returns
    -------
    history : History
        The rounds before the checkpoint; empty without a checkpoint.
    arrays : ArrayRecord
        The global model after them.
    """
    for _, plain, arrays in read_checkpoints(directory, digest_for_resume(experiment.config)):
        unpack_object(plain["strategy"], arrays, experiment.strategy)
        for name, packed in plain["channel"].items():
            unpack_object(packed, arrays, experiment.channel.stages[name])
        experiment.grid.states = unpack(plain["states"], arrays)
        return History(**plain["history"]), unpack(plain["arrays"], arrays)
    return History(), experiment.initial_arrays
