"""The command ``fedresearch app PATH``, which runs any Flower app instead of ``flwr run PATH``."""

import logging
import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedresearch.config.help_text import CONF
from fedresearch.config.verbs import VerbParser, reporting
from fedresearch.errors import InputError
from fedresearch.flower_app.pyproject import MOST_SUPERNODES, AppFolder, node_config, run_config

NUM_SUPERNODES = 10

_NOTES = """\
The app runs unmodified from its folder: nothing is copied or installed. The working directory does not change, and the
app's relative paths start there; `import` searches the folder first.

With the same seed and number of SuperNodes, an app gives the same bits on cpu and workers, if its clients use the
global generators of Python, NumPy and torch, or make their own for each message, and keep state only in Context.state.
Apps of Flower's old interface (`server_fn`) average in any order, and are equal up to rounding.

Time limits of the app (a timeout, a message's ttl) are ignored: the run waits for every client, so that the numbers do
not depend on the speed of the machine.
"""


def run(options: Namespace) -> None:
    """Run an app on the chosen hardware."""
    folder = AppFolder.read(options.path.resolve())
    config, client_config = run_config(folder.config, options.run_config), node_config(options.node_config)
    num_supernodes = options.num_supernodes or folder.num_supernodes or NUM_SUPERNODES
    if options.workers and options.hardware != "workers":
        raise InputError(
            f"--workers needs --hardware workers, got --hardware {options.hardware}; try --hardware workers"
        )
    hardware = _hardware()[options.hardware] | ({"workers": options.workers} if options.workers else {})

    # Only now: importing torch and Flower takes seconds.
    from flwr.app import Context, RecordDict
    from flwr.serverapp import ServerApp

    from fedresearch.experiment.builder import Builder
    from fedresearch.federation import flower
    from fedresearch.federation.generators import seeded_generators
    from fedresearch.flower_app.folder import FolderApp, FolderGrid, load_app
    from fedresearch.hardware.ordered import OrderedGrid
    from fedresearch.seeding import derive_seed

    flower.check_version()
    flower.quieten(logging.DEBUG)
    client_app = FolderApp(folder.path, folder.clientapp, options.seed, client_config)
    opened = Builder({"hardware": options.hardware}).build(
        "hardware", hardware, OrderedGrid, client_app=client_app, num_supernodes=num_supernodes, run_config=config
    )
    client_app.load()  # a mistake in it is reported here, and not by each client
    server_app = load_app(folder.path, folder.serverapp, options.seed, ServerApp)
    with opened as grid, seeded_generators(derive_seed(options.seed, "server-app")):
        server_app(
            FolderGrid(grid), Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config))
        )


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    with reporting(InputError):  # all else is the app's, and its traceback helps
        parser = _parser()
        options, unknown = parser.parse_known_args(words)
        if unknown:
            pairs = [*options.run_config[-1:], *(word for word in unknown if "=" in word and word[0] != "-")]
            message = f"unrecognized arguments: {' '.join(unknown)}"
            if len(pairs) > 1:
                raise InputError(f"{message}; try --run-config {shlex.quote(' '.join(pairs))}, with the quotes")
            parser.error(message)
        run(options)


def _parser() -> VerbParser:
    parser = VerbParser("app", "Run a Flower app, as flwr run does.", _NOTES, allow_abbrev=False)
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="the app's folder, with its pyproject.toml")
    add("-c", "--run-config", action="append", default=[], metavar="CONFIG", help="'a=1 b=\"text\"', or a TOML file")
    add(
        "--node-config",
        default="",
        metavar="CONFIG",
        help="added to context.node_config of every client, such as 'region=\"north\" power=2'",
    )
    add(
        "--num-supernodes",
        type=_num_supernodes,
        metavar="N",
        help=f"number of clients (default: from pyproject.toml's default federation, or {NUM_SUPERNODES})",
    )
    add("--hardware", choices=_hardware(), default="cpu", help="where the clients run; fedresearch --help describes it")
    add("--workers", type=_positive, metavar="N", help="processes of --hardware workers (default: the number of cores)")
    add("--seed", type=int, default=0, help="determines all random numbers (default: 0)")
    return parser


def _hardware() -> dict[str, dict[str, Any]]:
    """Return the options of conf/hardware that run any ClientApp, and their nodes."""
    nodes: dict[str, Any] = {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(CONF.glob("hardware/[!_]*.yaml"))
    }
    return {name: node for name, node in nodes.items() if node.get("declares", {}).get("runs") == "client_app"}


def _num_supernodes(text: str) -> int:
    if _positive(text) > MOST_SUPERNODES:
        raise ArgumentTypeError(f"must be at most {MOST_SUPERNODES}, got {text}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"must be an integer >= 1, got {text}")
    return int(text)
