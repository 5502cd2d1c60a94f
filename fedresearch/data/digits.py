"""scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fedresearch.data.source import Samples, Source


def load() -> Source:
    """Load 1,797 grey images of 8 x 8 pixels, scaled to [0, 1]; a fixed, stratified 20 % is the test split.

    The images are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998).
    """
    digits = load_digits()
    x = torch.from_numpy(digits.images / 16).float()[:, None]
    y = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(y)), test_size=0.2, stratify=digits.target, random_state=0)
    return Source(Samples(x[train], y[train]), Samples(x[test], y[test]))
