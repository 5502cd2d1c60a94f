"""Objects from config nodes; the only caller of ``hydra.utils.instantiate``."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from fedresearch.errors import InputError

# What a constructor raises when it refuses its arguments.
_REFUSALS = (TypeError, ValueError, ImportError, RuntimeError, LookupError, ArithmeticError, MemoryError)


class Builder:
    """Builds what config nodes describe; what is refused is told as the mistake of the option that was chosen.

    Parameters
    ----------
    choices : mapping
        Config group to chosen option.
    """

    def __init__(self, choices: Mapping[str, str | None]) -> None:
        self._choices = choices

    def build(self, group: str, node: Mapping[str, Any], **objects: Any) -> Any:
        """Return the object that a node of a group describes, given further arguments, which the node must not have."""
        self._refuse_given(group, node, objects)
        try:
            return hydra.utils.instantiate(dict(node), _convert_="all", **objects)
        except InstantiationException as error:
            cause = error.__cause__
            if isinstance(cause, InputError):
                raise cause from None
            if cause is None or isinstance(cause, _REFUSALS):
                hint = "; run from the folder that holds it, or add that to PYTHONPATH" * isinstance(cause, ImportError)
                raise InputError(f"{self._option(group)}: {one_line(cause or error)}{hint}") from error
            raise cause from None

    def partial(self, group: str, node: Mapping[str, Any], given: Collection[str] = ()) -> "functools.partial[Any]":
        """Return a plain partial of what a node describes: each call of Hydra's own costs a check of its target.

        Parameters
        ----------
        group : str
            The config group.
        node : mapping
            Describes the callable, and some of its arguments.
        given : collection of str
            The arguments that its calls will give.
        """
        self._refuse_given(group, node, given)
        made = self.build(group, {**node, "_partial_": True})
        return functools.partial(made.func, *made.args, **made.keywords)

    def call(self, group: str, make: Callable[..., Any], **objects: Any) -> Any:
        """Call what was built for a group."""
        try:
            return make(**objects)
        except _REFUSALS as error:
            raise InputError(f"{self._option(group)}: {one_line(error)}") from error

    def _refuse_given(self, group: str, node: Mapping[str, Any], given: Collection[str]) -> None:
        for key in given:
            if key in node:
                raise InputError(f"{self._option(group)}: {key} cannot be set, the run gives it; remove {key}")

    def _option(self, group: str) -> str:
        return f"{group}={self._choices.get(group)}"


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or repr(error)
