"""Loads the apps in the folder of a Flower app, and makes them reproducible."""

import importlib
import logging
import operator
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from flwr.app import DEFAULT_TTL, Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedresearch.errors import InputError
from fedresearch.federation.delegating_grid import DelegatingGrid
from fedresearch.federation.flower import FIRST_NODE_ID, quieten
from fedresearch.federation.generators import seeded_generators
from fedresearch.seeding import derive_seed

_App = TypeVar("_App", ClientApp, ServerApp)

# The default of Strategy.start, in seconds.
_DEFAULT_TIMEOUT = 3600
# Flower's, as its apps log to it.
_log = logging.getLogger("flwr")


class FolderApp(ClientApp):
    """The ClientApp in a folder, loaded in the process that first calls it.

    The random numbers of a message follow from the seed, its client and the number of the client's earlier messages.

    Parameters
    ----------
    folder : Path
        The app's folder.
    reference : str
        ``"package.module:attribute"``, as in its pyproject.toml.
    seed : int
        The run's seed.
    node_config : mapping
        Further entries of the clients' ``context.node_config``.
    """

    def __init__(self, folder: Path, reference: str, seed: int, node_config: UserConfig) -> None:
        super().__init__()
        self._arguments = folder, reference, seed, node_config
        self._app: ClientApp | None = None

    def __reduce__(self) -> tuple[type["FolderApp"], tuple[Path, str, int, UserConfig]]:
        """Pickle the location of the app, whose functions may not be picklable."""
        return FolderApp, self._arguments

    def __call__(self, message: Message, context: Context) -> Message:
        """Let the folder's app reply, with its mods and its lifespan."""
        app = self.load()
        context.node_config.update(self._arguments[3])
        with seeded_generators(derive_seed(self._arguments[2], "client-app", int(message.metadata.message_id))):
            return app(message, context)

    def load(self) -> ClientApp:
        """Return the folder's app.

        Raises
        ------
        InputError
            If it cannot be loaded.
        """
        if self._app is None:
            quieten(logging.DEBUG)  # a worker logs as much as the server
            self._app = load_app(*self._arguments[:3], ClientApp)
        return self._app


class FolderGrid(DelegatingGrid):
    """The Grid of a folder's ServerApp, which logs what would be hidden.

    It logs the traceback of each client that fails. It ignores time limits, since the numbers would depend on the speed
    of the machine: pushing messages waits for all replies. A limit that differs from Flower's default is logged once.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._named: set[str] = set()

    def sample_nodes(self, min_available_nodes: int, sample_size: int) -> tuple[list[int], list[int]]:
        """Sample nodes as Flower does; return them and all nodes.

        Raises
        ------
        InputError
            If the app's strategy waits for more nodes than exist.
        """
        node_ids, needed = list(self.get_node_ids()), max(min_available_nodes, sample_size)
        if needed > len(node_ids):
            raise InputError(
                f"the app's strategy waits for {needed} nodes, got {len(node_ids)}; try --num-supernodes {needed}"
            )
        return random.sample(node_ids, sample_size), node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients reply, and return the ids of the messages."""
        messages = list(messages)
        for message in messages:
            if message.metadata.ttl != DEFAULT_TTL:
                self._name("ttl", message.metadata.ttl)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies, and log the errors."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error() and node_id >= FIRST_NODE_ID:
                _log.error("The client of partition %s failed:\n%s", node_id - FIRST_NODE_ID, reply.error.reason)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies."""
        if timeout not in (None, _DEFAULT_TIMEOUT):
            self._name("timeout", timeout)
        return self.pull_messages(self.push_messages(messages))

    def _name(self, limit: str, seconds: float | None) -> None:
        if limit not in self._named:
            self._named.add(limit)
            _log.warning("%s=%s is ignored here: the run waits for every client", limit, seconds)


def load_app(folder: Path, reference: str, seed: int, kind: type[_App]) -> _App:
    """Return the app that a reference names, imported with seeded generators.

    Raises
    ------
    InputError
        If it cannot be imported, or has another type.
    """
    module_name, _, attribute = reference.partition(":")
    where = f'{folder / "pyproject.toml"}: {kind.__name__.lower()} = "{reference}"'
    if not module_name or not attribute:
        raise InputError(f'{where} must be a module and an attribute; try "package.{module_name or "module"}:app"')
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        with seeded_generators(derive_seed(seed, "app-import")):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{where} cannot be imported: {error}") from error
    try:
        app = operator.attrgetter(attribute)(module)
    except AttributeError:
        raise InputError(f"{where}: {module.__file__} has no {attribute}") from None
    if not isinstance(app, kind):
        raise InputError(f"{where} must be a {kind.__name__}, got a {type(app).__name__}")
    return app
