"""What is measured of a model: functions of its outputs ``(n, ...)`` and the targets ``(n, ...)`` of all samples.

Each returns a number, or one for each entry of a list. NaN: undefined for these samples.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of samples whose class has the largest output."""
    return int((outputs.argmax(dim=1) == targets).sum()) / len(targets)


def per_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the accuracy on the samples of each class, ``(num_classes,)``; NaN for a class without samples."""
    counts = confusion(outputs, targets)
    return counts.diag() / counts.sum(dim=1)


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the accuracies on each class that has samples."""
    return per_class(outputs, targets).nanmean()


def macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the F1 scores of the classes that occur among the targets or the predictions."""
    counts = confusion(outputs, targets)
    return (2 * counts.diag() / (counts.sum(dim=0) + counts.sum(dim=1))).nanmean()


def auc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean area under the ROC curve of each class against all others, of classes with samples in both.

    The area is the share of pairs of a sample of the class and another in which the former has the larger probability;
    equal ones count half (Hanley and McNeil 1982).
    """
    areas = []
    for index, scores in enumerate(outputs.double().softmax(dim=1).unbind(dim=1)):
        inside, others = scores[targets == index], scores[targets != index].sort().values
        below, up_to = (torch.searchsorted(others, inside, right=right).double() for right in (False, True))
        areas.append(((below + up_to) / 2 / len(others)).mean())
    return torch.stack(areas).nanmean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of the targets' variance that the outputs explain, a mean over the targets' dimensions.

    NaN if a dimension has no variance, as for a single sample.
    """
    outputs, targets = outputs.double(), targets.double()
    total = (targets - targets.mean(dim=0)).square().sum(dim=0)
    left = (targets - outputs).square().sum(dim=0)
    return torch.where(total > 0, 1 - left / total, torch.nan).mean()


def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the exponential of the mean cross-entropy in nats."""
    return F.cross_entropy(outputs.double(), targets).exp()


def confusion(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the number of samples of each class (rows) for which each class (columns) is predicted."""
    num_classes = outputs.shape[1]
    pairs = targets * num_classes + outputs.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).double()
