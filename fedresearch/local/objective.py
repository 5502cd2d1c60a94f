"""What a model is trained for and judged by, told by the targets' type."""

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

# Samples in one forward pass of an evaluation. Fixed, so that sums are formed in one order everywhere.
EVALUATION_BATCH = 1024


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's loss, ``(b,)``: cross-entropy for class indices, mean squared error for floats."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets, reduction="none").flatten(start_dim=1).mean(dim=1)
    return F.cross_entropy(outputs, targets, reduction="none")


def evaluate(model: Module, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Return the mean loss over samples, and the accuracy where the targets are classes.

    Parameters
    ----------
    model : Module
        The model, in training or evaluation mode; it is left in evaluation mode.
    x, y : Tensor
        Inputs ``(n, *input_shape)`` and targets ``(n, ...)``, with n at least 1.
    """
    model.eval()
    total, correct = 0.0, 0
    with torch.inference_mode():
        for inputs, targets in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            outputs = model(inputs)
            total += losses(outputs, targets).mean().item() * len(targets)
            if not y.is_floating_point():
                correct += int((outputs.argmax(dim=1) == targets).sum())
    return total / len(y), None if y.is_floating_point() else correct / len(y)
