"""The loss of a model, which follows from the type of the targets, and its evaluation."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn import functional as F

from fedresearch.errors import InputError

# Makes a model's inputs of samples, which may be pixels: ``(n, ...)`` to ``(n, *input_shape)``.
Prepare = Callable[[Tensor], Tensor]

# Samples in one forward pass of an evaluation. It is fixed, so that the order of sums is the same everywhere.
EVALUATION_BATCH = 1024

# Name to a function of outputs and targets that returns a number, or several.
Metrics = Mapping[str, Callable[[Tensor, Tensor], Any]]


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's loss, ``(b,)``: cross-entropy for class indices, mean squared error for floats."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets, reduction="none").flatten(start_dim=1).mean(dim=1)
    return F.cross_entropy(outputs, targets, reduction="none")


def unchanged(x: Tensor) -> Tensor:
    """Return samples that are a model's inputs."""
    return x


def evaluate(
    model: Module, x: Tensor, y: Tensor, prepare: Prepare = unchanged, metrics: Metrics = MappingProxyType({})
) -> dict[str, float]:
    """Return the mean loss over samples as ``"loss"``, and what the metrics measure.

    A metric's list becomes ``NAME/0``, ``NAME/1``, and so on.

    Parameters
    ----------
    model : Module
        The model; it is in evaluation mode afterwards.
    x, y : Tensor
        Samples ``(n, *input_shape)`` and targets ``(n, ...)``, with n at least 1.
    prepare : callable
        Makes the model's inputs of samples.
    metrics : mapping of str to callable
        As in ``fedresearch/local/metrics.py``.
    """
    model.eval()
    total, outputs = 0.0, []
    with torch.inference_mode():
        for inputs, targets in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            outputs.append(model(prepare(inputs)))
            total += losses(outputs[-1], targets).mean().item() * len(targets)
        measured = {"loss": total / len(y)}
        together = torch.cat(outputs)
        for name, metric in metrics.items():
            value = _as_numbers(name, metric(together, y))
            entries = {f"{name}/{i}": float(entry) for i, entry in enumerate(value)} if value.ndim else {}
            measured |= entries or {name: float(value)}
    return measured


def _as_numbers(name: str, measured: Any) -> Tensor:
    try:
        return torch.as_tensor(measured, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the metric {name} must return a number or a list of numbers, got {measured!r}") from error


def mean_gradient(
    model: Module, params: Mapping[str, Tensor], x: Tensor, y: Tensor, prepare: Prepare = unchanged
) -> dict[str, Tensor]:
    """Return the mean gradient of the loss over samples, at given parameters."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    for inputs, targets in _parts(x, y):
        outputs = functional_call(model, (leaves, buffers), (prepare(inputs),))
        (losses(outputs, targets).sum() / len(y)).backward()
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def mean_loss(
    model: Module, params: Mapping[str, Tensor], x: Tensor, y: Tensor, prepare: Prepare = unchanged
) -> Tensor:
    """Return the mean loss over samples, at given parameters, as ``Start.loss``; the model then is in training mode."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    model.eval()
    with torch.no_grad():
        for inputs, targets in _parts(x, y):
            outputs = functional_call(model, dict(params), (prepare(inputs),))
            total += losses(outputs, targets).sum(dtype=torch.float64)
    model.train()
    return total / len(y)


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield samples in parts of about equal sizes, since BatchNorm without running statistics refuses one sample."""
    num_parts = -(-len(y) // EVALUATION_BATCH)
    return zip(x.tensor_split(num_parts), y.tensor_split(num_parts), strict=True)
