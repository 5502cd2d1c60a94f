"""Samples that are mixed in pairs: each has the targets of both, and the weight of its own."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fedresearch.local.update import Fixed, LocalUpdate, Model, Tensors


class Mixed(NamedTuple):
    """The targets of mixed samples.

    Attributes
    ----------
    own, partner : Tensor or Mixed
        Each sample's own target and its partner's, ``(n, ...)``.
    weight : Tensor
        The weight of its own, ``(n,)``; the partner's is the rest to 1.
    """

    own: "Tensor | Mixed"
    partner: "Tensor | Mixed"
    weight: Tensor


Targets = Tensor | Mixed


def partners(values: Tensor, drawn: Tensors) -> Tensor:
    """Return the value of each sample's partner, which is ``drawn["offset"]`` places behind it."""
    return values[torch.arange(len(values), device=values.device) + drawn["offset"]]


def mixed(targets: Targets, drawn: Tensors) -> Mixed:
    """Return the targets after their samples are mixed, maybe once more."""
    return Mixed(targets, tree_map(lambda values: partners(values, drawn), targets), drawn["weight"])


def split(targets: Targets, batch_size: int) -> Iterable[Targets]:
    """Return the targets of batches."""
    if isinstance(targets, Tensor):
        return targets.split(batch_size)
    return (Mixed(*parts) for parts in zip(*(split(part, batch_size) for part in targets), strict=True))


def objective(update: LocalUpdate, model: Model, params: Tensors, x: Tensor, y: Targets, fixed: Fixed) -> Tensor:
    """Return the update's objective of each sample; for mixed ones, the weighted mean of it for both targets."""
    if isinstance(y, Tensor):
        return update.objective(model, params, x, y, fixed)
    once = _Once(model)
    own, partner = (objective(update, once, params, x, targets, fixed) for targets in (y.own, y.partner))
    weight = y.weight.to(own.dtype)
    return weight * own + (1 - weight) * partner


class _Once:
    """A model that computes the same outputs only once, since they do not depend on the targets."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seen: dict[tuple[str, int, int], tuple[Any, Tensors, Tensor]] = {}

    def __call__(self, params: Tensors, x: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self._first("outputs", self._model, params, x)
        return outputs

    def features(self, params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and the features."""
        found: tuple[Tensor, Tensor] = self._first("features", self._model.features, params, x)
        return found

    def _first(self, name: str, function: Callable[[Tensors, Tensor], Any], params: Tensors, x: Tensor) -> Any:
        key = name, id(params), id(x)
        if key not in self._seen:
            self._seen[key] = function(params, x), params, x  # kept, so that no other object has their ids
        return self._seen[key][0]
