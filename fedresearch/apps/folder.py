"""Apps that are read from the folder of a Flower app, and what makes them reproducible."""

import importlib
import logging
import operator
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedresearch.apps.flower import quieten
from fedresearch.errors import InputError
from fedresearch.seeding import Purpose, derive_seed

_App = TypeVar("_App", ClientApp, ServerApp)


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
    """

    def __init__(self, folder: Path, reference: str, seed: int) -> None:
        super().__init__()
        self._arguments = folder, reference, seed
        self._app: ClientApp | None = None

    def __reduce__(self) -> tuple[type["FolderApp"], tuple[Path, str, int]]:
        """Pickle where the app is: its functions need not be picklable."""
        return FolderApp, self._arguments

    def __call__(self, message: Message, context: Context) -> Message:
        """Let the folder's app answer, with its mods and its lifespan."""
        app = self.load()
        with seeded(self._arguments[2], "client-app", int(message.metadata.message_id)):
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
            self._app = load_app(*self._arguments, ClientApp)
        return self._app


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
        with seeded(seed, "app-import"):
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


@contextmanager
def seeded(seed: int, purpose: Purpose, *where: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, and afterwards put them back where they were."""
    number = derive_seed(seed, purpose, *where)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
