"""Builds objects from config nodes; the only caller of ``hydra.utils.instantiate``."""

import functools
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, TypeVar

import hydra.utils
from hydra.errors import InstantiationException

from fedresearch.config.options import SECTIONS
from fedresearch.config.rules import as_written
from fedresearch.config.sections import DECLARATIONS
from fedresearch.errors import InputError, named, one_line, raised_at

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


class _Described(functools.partial[Any]):
    """The callable that a node describes, with its arguments. A call rejects arguments that the callable does not have.

    Attributes
    ----------
    option, key, node
        The chosen option, as typed; the node's dotted key; the node.
    """

    option: str
    key: str
    node: Mapping[str, Any]

    def __call__(self, *positional: Any, **objects: Any) -> Any:
        try:
            return super().__call__(*positional, **objects)
        except TypeError as error:
            if line := _unknown_argument(error, self.key, self.node, objects):
                raise InputError(f"{self.option}: {line}") from error
            raise


def _unknown_argument(error: BaseException, key: str, node: Mapping[str, Any], given: Collection[str] = ()) -> str:
    """Return the line for an argument that a node has and its callable does not; "" for any other error.

    Parameters
    ----------
    error : BaseException
        What the call raised.
    key : str
        The node's dotted key.
    node : mapping
        The node; others may be in it.
    given : collection of str
        The arguments that the run gives.
    """
    refused = re.search(r"unexpected keyword argument '(.+?)'|\(\) takes no arguments", str(error))
    if not isinstance(error, TypeError) or not refused or "_target_" not in node:
        return ""
    typed = [name for name in node if not name.startswith("_") and name not in DECLARATIONS]
    target = hydra.utils.get_object(node["_target_"])
    names = _names_of_arguments(target)
    unknown = [name for name in typed if name not in names and refused[1] in (name, None)]
    if unknown:
        allowed = [*dict.fromkeys(name for name in (*typed, *names) if name not in (*unknown, *given))]
        near = get_close_matches(unknown[0], allowed, n=1)
        word = f"{'' if near[0] in node else '+'}{key}.{near[0]}={as_written(node[unknown[0]])}" if near else ""
        hint = f"try {shlex.quote(word)}" if near else "leave it out"
        listed = f"its arguments are {', '.join(allowed)}" if allowed else "no argument can be set"
        return f"{key}.{unknown[0]} is not an argument of {getattr(target, '__name__', target)}; {hint}; {listed}"
    if refused[1] in given and refused[1] not in names:
        return f"{getattr(target, '__name__', target)} must have the arguments that the run gives: {', '.join(given)}"
    inner = (_unknown_argument(error, f"{key}.{name}", node[name]) for name in typed if isinstance(node[name], Mapping))
    return next(filter(None, inner), "")


def _names_of_arguments(target: Any) -> dict[str, None]:
    """Return the names of a callable's arguments; of a class that passes arguments on, also those of its bases."""
    names: dict[str, None] = {}
    with suppress(ValueError, TypeError):  # some builtins have no signature
        for part in (target, *(base.__init__ for base in getattr(target, "__mro__", ())[1:])):
            parameters = inspect.signature(part).parameters.values()
            by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names |= {one.name: None for one in parameters if one.kind in by_name and one.name != "self"}
            if not any(one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters):
                break
    return names


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
        make = self.partial(group, what, objects, key) if isinstance(what, Mapping) else what
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

    def partial(
        self, group: str, node: Mapping[str, Any], given: Collection[str] = (), key: str = ""
    ) -> "functools.partial[Any]":
        """Return the callable that a node describes, with its arguments. Hydra's own checks its target at each call.

        Parameters
        ----------
        group : str
            The config group.
        node : mapping
            Describes the callable and some of its arguments.
        given : collection of str
            The arguments that each call gives; the node must not have them.
        key : str
            The node's dotted key; "": the group's section.

        Raises
        ------
        InputError
            If it cannot be loaded, or the node has one of these arguments.
        """
        key = key or SECTIONS.get(group, group)
        for name in given:
            if name in node:
                raise InputError(f"{self._option(group)}: {name} cannot be set, the run gives it; remove {name}")
        try:
            arguments = {name: value for name, value in node.items() if name not in DECLARATIONS}
            made = hydra.utils.instantiate({**arguments, "_partial_": True}, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            if isinstance(cause, ImportError) and (target := re.match("Error loading '(.*?)'", str(cause))):
                raise InputError(f"{self._option(group)}: {_not_loaded(target[1])}") from error
            if line := _unknown_argument(cause, key, node):
                raise InputError(f"{self._option(group)}: {line}") from error
            raise self._refusal(group, cause) from error
        except SystemExit as error:
            raise self._refusal(group, error) from error
        described = _Described(made.func, *made.args, **made.keywords)
        described.option, described.key, described.node = self._option(group), key, node
        return described

    def _refusal(self, group: str, error: BaseException) -> InputError:
        """Return the line for an error that an option raised while it was built."""
        if isinstance(error, InputError):
            return error
        if isinstance(error, SystemExit):
            return InputError(f"{self._option(group)} ended the process (exit code {error.code}); it must return")
        is_refusal = isinstance(error, (*_REFUSALS, InstantiationException))
        return InputError(f"{self._option(group)}: {one_line(error if is_refusal else repr(error))}{raised_at(error)}")

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
                return f"{name} cannot be imported: {one_line(named(error))}{raised_at(error)}"
            if found is None:
                return f"module {part} does not exist; run from the folder that holds it, or add that to PYTHONPATH"
            if not hasattr(found, part):
                meant = "".join(f"; did you mean {near}?" for near in get_close_matches(part, dir(found), n=1))
                where = f" ({found.__file__})" if getattr(found, "__file__", None) else ""
                return f"{found.__name__}{where} has no {part}{meant}"
            found = getattr(found, part)
    return f"{target} cannot be loaded"
