"""Short runs in directories, as they would be if killed, and all that they came to."""

import copy
import functools
import json
import shutil

from fedresearch import config
from fedresearch.config.help_text import CONF
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.run import run_experiment
from fedresearch.federation.state import _READ
from fedresearch.runs.checkpoint import read_checkpoints
from fedresearch.runs.record import dump_record, read_record, read_rows

MLP = ["model=mlp", "model.widths=[6]"]
SHORT = [
    "tracker=none",
    "federation.num_supernodes=5",
    "federation.fraction_train=0.6",
    "federation.num_rounds=4",
    "local.epochs=null",
    "local.steps=2",
    "checkpoint.every=1",
    "checkpoint.keep=9",
]
COMMAND = ["python", "-m", "fedresearch.main"]
# Keeps something on the server and on the clients.
SCAFFOLD = ["strategy=scaffold"]


@functools.cache
def _composed(words):
    return config.compose(CONF, words)[:2]


def compose(*words, config_dir=None):
    """Return the config and the chosen options, which are composed once for the same words: it takes a fifth second.

    What words do not say alone, as a file that they name, is read each time.
    """
    if config_dir or any("${" in word for word in words):
        return config.compose(CONF, words, [config_dir] if config_dir else [])[:2]
    return copy.deepcopy(_composed(words))


def conduct(directory, *overrides, config_dir=None):
    model = [] if any(word.startswith("model=") for word in overrides) else MLP
    composed, choices = compose(*model, *SHORT, *overrides, config_dir=config_dir)
    run_experiment(RunRequest(composed, choices, directory, list(overrides), COMMAND, [], may_resume=True))
    return directory


def killed(source, directory, *, checkpoint, row=None):
    """Copy a run as it would be, had it been killed: with its rows to one, and its checkpoints to one before."""
    shutil.copytree(source, directory)
    for path in (directory / "checkpoints").iterdir():
        if int(path.stem[6:]) > checkpoint:
            path.unlink()
    lines = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    last = checkpoint if row is None else row
    (directory / "metrics.jsonl").write_bytes(b"".join(line for line in lines if json.loads(line)["round"] <= last))
    (directory / "model.safetensors").unlink()
    set_status(directory, "running")
    return directory


def set_status(directory, status):
    record = {**read_record(directory), "status": status, "ended": None, "result": None}
    (directory / "run.json").write_text(dump_record(record))


def rows_of(directory):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(directory)]


def resolved(packed, arrays):
    """Return packed values with the arrays' bytes in place of their names."""
    if isinstance(packed, dict):
        return {name: resolved(value, arrays) for name, value in packed.items()}
    if not isinstance(packed, list):
        return packed
    if len(packed) == 2 and isinstance(packed[0], str) and packed[0] in _READ:
        array = arrays[packed[1]]
        return [packed[0], array.dtype.str, array.shape, array.tobytes()]
    if len(packed) == 2 and packed[0] in ("set", "frozenset"):
        return [packed[0], sorted(packed[1])]  # a set has no order, nor has what is done with its names
    return [resolved(each, arrays) for each in packed]


def outcome(directory):
    """Return all that a run came to: its rows without times, its model, and what server and clients kept and did."""
    _, plain, arrays = next(read_checkpoints(directory))
    kept = {name: resolved(value, arrays) for name, value in plain.items() if name != "history"}
    files = [(directory / name).read_bytes() for name in ("model.safetensors", "clients.jsonl")]
    return rows_of(directory), *files, kept


def rounds_of_checkpoints(directory):
    return sorted(int(path.stem[6:]) for path in (directory / "checkpoints").iterdir())
