"""scikit-learn's diabetes progression, a regression."""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from fedresearch.data.source import Samples, Source


def load() -> Source:
    """Load 442 patients with 10 measurements each, and the progression of their diabetes after a year.

    Inputs and targets, of shapes ``(n, 10)`` and ``(n, 1)``, are float64 with mean 0 and standard deviation 1 over the
    training split. A fixed fifth of the patients is the test split.
    From Efron, Hastie, Johnstone and Tibshirani 2004, "Least Angle Regression".
    """
    patients = load_diabetes()
    x, y = torch.from_numpy(patients.data), torch.from_numpy(patients.target)[:, None]
    train, test = train_test_split(range(len(y)), test_size=0.2, random_state=0)
    x, y = ((a - a[train].mean(0)) / a[train].std(0, correction=0) for a in (x, y))
    return Source(Samples(x[train], y[train]), Samples(x[test], y[test]))
