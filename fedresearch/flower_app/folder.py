"""Apps that are read from the folder of a Flower app, and what makes them reproducible."""

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

# What Strategy.start passes by default, in seconds.
_DEFAULT_TIMEOUT = 3600
# Flower's, as its apps log to it.
_log = logging.getLogger("flwr")


class FolderApp(ClientApp):
    """A folder's ClientApp, loaded in the process that first calls it.

    A message's draws follow from the seed, its client and how many messages that client had before.

    Parameters
    ----------
    folder : Path
        The app's folder.
    reference : str
        ``"package.module:attribute"``, as in its pyproject.toml.
    seed : int
        The run's seed.
    node_config : mapping
        What clients find in ``context.node_config`` beside their partition.
    """

    def __init__(self, folder: Path, reference: str, seed: int, node_config: UserConfig) -> None:
        super().__init__()
        self._arguments = folder, reference, seed, node_config
        self._app: ClientApp | None = None

    def __reduce__(self) -> tuple[type["FolderApp"], tuple[Path, str, int, UserConfig]]:
        """Pickle where the app is: its functions need not be picklable."""
        return FolderApp, self._arguments

    def __call__(self, message: Message, context: Context) -> Message:
        """Let the folder's app answer, with its mods and its lifespan."""
        app = self.load()
        context.node_config.update(self._arguments[3])
        with seeded_generators(derive_seed(self._arguments[2], "client-app", int(message.metadata.message_id))):
            return app(message, context)

    def load(self) -> ClientApp:
        """Return the folder's app.

        Raises
        ------
        InputError
            If it is not there.
        """
        if self._app is None:
            quieten(logging.DEBUG)  # a worker's lines are as welcome as the server's
            self._app = load_app(*self._arguments[:3], ClientApp)
        return self._app


class FolderGrid(DelegatingGrid):
    """The Grid of a folder's ServerApp: says what of the clients and of the app's wishes is else not seen.

    Clients that fail are logged with their traceback. A time limit does not count, for it would make the numbers a
    matter of the machine's speed: all clients answer before their messages have been pushed. One that is not Flower's
    default is named, once.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._named: set[str] = set()

    def sample_nodes(self, min_available_nodes: int, sample_size: int) -> tuple[list[int], list[int]]:
        """Draw nodes as Flower does, and return them and all.

        Raises
        ------
        InputError
            If there are fewer than the app's strategy waits for: no more will come.
        """
        node_ids, needed = list(self.get_node_ids()), max(min_available_nodes, sample_size)
        if needed > len(node_ids):
            raise InputError(
                f"the app's strategy waits for {needed} nodes, got {len(node_ids)}; try --num-supernodes {needed}"
            )
        return random.sample(node_ids, sample_size), node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer, and return the messages' ids."""
        messages = list(messages)
        for message in messages:
            if message.metadata.ttl != DEFAULT_TTL:
                self._name("ttl", message.metadata.ttl)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies, and log those that are errors."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error() and node_id >= FIRST_NODE_ID:
                _log.error("The client of partition %s failed:\n%s", node_id - FIRST_NODE_ID, reply.error.reason)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull in one."""
        if timeout not in (None, _DEFAULT_TIMEOUT):
            self._name("timeout", timeout)
        return self.pull_messages(self.push_messages(messages))

    def _name(self, limit: str, seconds: float | None) -> None:
        if limit not in self._named:
            self._named.add(limit)
            _log.warning("%s=%s does not count here: every client is waited for, however long it takes", limit, seconds)


def load_app(folder: Path, reference: str, seed: int, kind: type[_App]) -> _App:
    """Return what a reference names, imported with seeded generators.

    Raises
    ------
    InputError
        If it cannot be imported or is of another kind.
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
