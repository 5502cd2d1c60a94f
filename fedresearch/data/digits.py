"""scikit-learn's handwritten digits, bundled, since importing scikit-learn takes a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedresearch.data.source import Samples, Source


def load() -> Source:
    """Load 1,797 grey images of 8 x 8 pixels, scaled to [0, 1]; a fixed, stratified 20 % is the test split.

    The images are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998). The
    split is that of scikit-learn's ``train_test_split(test_size=0.2, stratify=labels, random_state=0)``.
    """
    splits = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="ascii"))
    return Source(_samples(splits["train"]), _samples(splits["test"]))


def _samples(split: dict[str, Any]) -> Samples:
    """Return the samples of one split: 64 letters for each image, ``a`` to ``q`` for 0 to 16, and digits as labels."""
    letters, digits = (np.frombuffer("".join(split[name]).encode(), np.uint8) for name in ("images", "labels"))
    images = torch.from_numpy(letters - np.uint8(ord("a"))).reshape(-1, 1, 8, 8)
    return Samples(images.float() / 16, torch.from_numpy(digits - np.uint8(ord("0"))).long())
