"""Builds objects from config nodes; the only caller of ``hydra.utils.instantiate``."""

import functools
import importlib
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, TypeVar

import hydra.utils
from hydra.errors import InstantiationException

from fedresearch.config.sections import DECLARATIONS
from fedresearch.errors import InputError, named, one_line

T = TypeVar("T")

# Errors with which a constructor rejects its arguments; any other error is a bug in it.
_REFUSALS = (TypeError, ValueError, ImportError, RuntimeError, LookupError, ArithmeticError, MemoryError, OSError)


def refuse_foreign(node: Any) -> None:
    """Reject a model's node unless it only calls one class of ``fedresearch.models`` with plain values.

    Models are called with ``input_shape`` and ``num_classes``, which no class of torch or torchvision accepts.

    Raises
    ------
    InputError
        With the foreign part.
    """
    target = node.get("_target_") if isinstance(node, Mapping) else None
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    kind: Any = None
    if module.startswith("fedresearch.models."):
        with suppress(ImportError, ValueError):
            kind = getattr(importlib.import_module(module), name, None)
    if not isinstance(kind, type) or not kind.__module__.startswith("fedresearch.models."):
        raise InputError(
            f"the model is {target}, which is not from fedresearch.models; load_model(DIR, trust=True) runs it"
        )
    for value in _nested({key: value for key, value in node.items() if key != "_target_"}):
        # Hydra builds nodes with a _target_, and resolves text between ${ and }.
        if isinstance(value, str) and (value.startswith("_") or "${" in value):
            raise InputError(
                f"the model has the argument {value}, which may run code; load_model(DIR, trust=True) runs it"
            )


def _nested(value: Any) -> Iterator[Any]:
    """Yield all keys and values in nested sections and lists."""
    yield value
    for inner in (*value.keys(), *value.values()) if isinstance(value, Mapping) else ():
        yield from _nested(inner)
    for inner in value if isinstance(value, list | tuple) else ():
        yield from _nested(inner)


class Builder:
    """Builds objects from config nodes; an error names the chosen option.

    Parameters
    ----------
    choices : mapping
        Config group to chosen option.
    """

    def __init__(self, choices: Mapping[str, str | None]) -> None:
        self._choices = choices

    def build(
        self,
        group: str,
        what: Mapping[str, Any] | Callable[..., Any],
        kind: type[T],
        key: str = "",
        **objects: Any,
    ) -> T:
        """Return the object that a node of a group describes, or that a callable built from one makes.

        Parameters
        ----------
        group : str
            The config group.
        what : mapping or callable
            The node, without its declarations; or the result of :meth:`partial`, or a method of a built object.
        kind : type
            The type that the object must have.
        key : str
            The node's dotted key; "": the group.
        **objects
            Further arguments, which the node must not have.

        Raises
        ------
        InputError
            If it cannot be built or has another type.
        """
        make = self.partial(group, what, objects) if isinstance(what, Mapping) else what
        try:
            made = make(**objects)
        except (Exception, SystemExit) as error:
            raise self._refusal(group, error) from error
        if not isinstance(made, kind):
            package = kind.__module__.partition(".")[0]
            got = "None" if made is None else f"a {type(made).__name__}"
            raise InputError(
                f"{self._option(group)}: {key or group} must make a {kind.__name__} ({package}), got {got}"
            )
        return made

    def partial(self, group: str, node: Mapping[str, Any], given: Collection[str] = ()) -> "functools.partial[Any]":
        """Return the callable that a node describes, with its arguments. Hydra's own checks its target at each call.

        Parameters
        ----------
        group : str
            The config group.
        node : mapping
            Describes the callable and some of its arguments.
        given : collection of str
            The arguments that each call gives; the node must not have them.

        Raises
        ------
        InputError
            If it cannot be loaded, or the node has one of these arguments.
        """
        for key in given:
            if key in node:
                raise InputError(f"{self._option(group)}: {key} cannot be set, the run gives it; remove {key}")
        try:
            arguments = {key: value for key, value in node.items() if key not in DECLARATIONS}
            made = hydra.utils.instantiate({**arguments, "_partial_": True}, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            if isinstance(cause, ImportError) and (target := re.match("Error loading '(.*?)'", str(cause))):
                raise InputError(f"{self._option(group)}: {_not_loaded(target[1])}") from error
            raise self._refusal(group, cause) from error
        except SystemExit as error:
            raise self._refusal(group, error) from error
        return functools.partial(made.func, *made.args, **made.keywords)

    def _refusal(self, group: str, error: BaseException) -> InputError:
        """Return the line for an error that an option raised while it was built."""
        if isinstance(error, InputError):
            return error
        if isinstance(error, SystemExit):
            return InputError(f"{self._option(group)} ended the process (exit code {error.code}); it must return")
        if isinstance(error, (*_REFUSALS, InstantiationException)):
            return InputError(f"{self._option(group)}: {one_line(error)}")
        *_, frame = traceback.extract_tb(error.__traceback__)
        return InputError(
            f"{self._option(group)}: {one_line(repr(error))} in {frame.filename}, line {frame.lineno}; "
            "FEDRESEARCH_FULL_ERROR=1 shows the traceback"
        )

    def _option(self, group: str) -> str:
        return f"{group}={self._choices.get(group)}"


def _not_loaded(target: str) -> str:
    """Return why a dotted name cannot be loaded."""
    found: Any = None
    name = ""
    for part in target.split("."):
        name = f"{name}.{part}".lstrip(".")
        try:
            found = importlib.import_module(name)
        except Exception as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != name:
                return f"{name} cannot be imported: {one_line(named(error))}"
            if found is None:
                return f"module {part} does not exist; run from the folder that holds it, or add that to PYTHONPATH"
            if not hasattr(found, part):
                meant = "".join(f"; did you mean {near}?" for near in get_close_matches(part, dir(found), n=1))
                where = f" ({found.__file__})" if getattr(found, "__file__", None) else ""
                return f"{found.__name__}{where} has no {part}{meant}"
            found = getattr(found, part)
    return f"{target} cannot be loaded"
