"""Short runs in directories, as they would be if killed, and all that they came to."""

import atexit
import copy
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedresearch import config
from fedresearch.config.compose import NAMES
from fedresearch.config.help_text import CONF
from fedresearch.config.resolvers import without_hydra
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
def _composed(words, folder):
    """Return what ``config.compose`` returns, without composing the same options anew for other values.

    Hydra, too, sets values at last. It composes all where it would do more than set values, or raise an error.
    """
    options = [word for word in words if word.partition("=")[0] in NAMES]
    values = [word for word in words if word not in options]
    if any("{" in word for word in options) or not all(re.match(r"\+{0,2}[a-z_]+(\.|=)", word) for word in values):
        return config.compose(CONF, words, folder)[:2]
    config.refuse_invalid_options(words)
    try:
        overrides = OverridesParser.create().parse_overrides(values)
        assert not any(each.is_sweep_override() or each.is_hydra_override() for each in overrides)
        assert not {*NAMES} & {each.key_or_group for each in overrides}
        composed = copy.deepcopy(_options(folder, *options))
        ConfigLoaderImpl._apply_overrides_to_config(overrides, composed)
    except (AssertionError, HydraException):
        return config.compose(CONF, words, folder)[:2]
    HydraConfig.instance().set_config(composed)
    return config.checked(without_hydra(composed), composed.hydra)


@functools.cache
def _options(folder, *words):
    search_path = [f"hydra.searchpath=[file://{path}]" for path in folder]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config.register()
        return hydra_compose("config", [*words, *search_path], return_hydra_config=True)


@functools.cache
def _folder(files):
    """Return a folder that holds these options, and stays: the same for the same ones."""
    folder = Path(tempfile.mkdtemp(prefix="options-"))
    atexit.register(shutil.rmtree, folder)
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def compose(*words, config_dir=None):
    """Return the config and the chosen options, which are composed once for the same words: it takes a tenth second.

    What words do not say alone, as a file that they name, is read each time.
    """
    folders = [config_dir] if config_dir else []
    if any("${" in word for word in words):
        return config.compose(CONF, words, folders)[:2]
    files = [(path.relative_to(folder), path.read_bytes()) for folder in folders for path in folder.rglob("*.yaml")]
    try:
        return copy.deepcopy(_composed(words, (_folder(tuple(sorted(files))),) if folders else ()))
    except Exception:
        if not folders:
            raise
        return config.compose(CONF, words, folders)[:2]  # its error may name the folder


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
