"""Facts about a run's data that may mislead: samples that no client holds, and test samples in the training data."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.data.federated import FederatedData

_CHUNK = 4096  # rows hashed at once


@dataclass(frozen=True)
class Facts:
    """Counts of samples and classes.

    Parameters
    ----------
    sha256 : str
        A SHA-256 over hashes of all clients' samples, independent of the partition, and of the test split's.
    num_train, num_test : int
        Numbers of samples of the dataset's two splits.
    num_unheld : int
        Number of training samples that no client holds.
    classes_untrained : sequence of int
        Classes of either split that no client trains on; empty for a regression.
    test_share_untrained : float
        Their share of the test split, in [0, 1].
    num_test_in_train : int
        Number of test samples that are bit by bit equal to a sample of a client.
    """

    sha256: str
    num_train: int
    num_test: int
    num_unheld: int
    classes_untrained: Sequence[int]
    test_share_untrained: float
    num_test_in_train: int

    def lines(self) -> Iterator[str]:
        """Yield the facts that may mislead, one line each."""
        untrained = []
        if self.num_unheld:
            untrained.append(f"no client has {self.num_unheld} of the {self.num_train} training samples")
        if self.classes_untrained:
            untrained.append(
                f"no client trains on {named_classes(self.classes_untrained)}, {self.test_share_untrained:.1%} of the "
                "test samples"
            )
        if untrained:
            yield "; ".join(untrained)
        if self.num_test_in_train:
            number = "all" if self.num_test_in_train == self.num_test else f"{self.num_test_in_train} of the"
            yield (
                f"{number} {self.num_test} test samples equal samples that clients have: eval/*, and a choice by it, "
                "may not hold for new data"
            )


def named_classes(classes: Sequence[int]) -> str:
    """Return the names of classes in a phrase; after 20 only the number of the rest."""
    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes[:20]))}{more}"


def gather_facts(data: FederatedData) -> Facts:
    """Return the facts of partitioned data."""
    num_held = sum(map(len, data.train)) + sum(map(len, data.validation))
    test = data.test_y.cpu().numpy()
    present = np.union1d(data.classes, test) if len(data.classes) else data.classes  # empty for a regression
    untrained = np.setdiff1d(present, data.trained_classes())
    hashes, test_hashes = _hashes(data.x, data.y), _hashes(data.test_x, data.test_y)
    sha = hashlib.sha256(np.sort(hashes).tobytes())
    sha.update(test_hashes.tobytes())
    return Facts(
        sha256=sha.hexdigest(),
        num_train=data.num_samples,
        num_test=len(test),
        num_unheld=data.num_samples - num_held,
        classes_untrained=untrained.tolist(),
        test_share_untrained=float(np.isin(test, untrained).mean()),
        num_test_in_train=_count_equal(data, hashes, test_hashes),
    )


def _hashes(x: Tensor, y: Tensor) -> NDArray[np.uint64]:
    """Return a hash of each sample's bytes: the sum of its 32-bit words, each multiplied by its own odd number."""
    hashes = np.zeros(len(x), np.uint64)
    for seed, array in enumerate((x, y)):
        num_words = -(-array[0].numel() * array.element_size() // 4) if len(array) else 0
        factors = np.random.default_rng(seed).integers(0, 2**64, num_words, dtype=np.uint64) | np.uint64(1)
        for rows, words in _words(array):
            hashes[rows] += words.astype(np.uint64) @ factors
    return hashes


def _words(array: Tensor) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    """Yield chunks of rows as 32-bit words of shape ``(rows, words)``; bytes are padded with zeros."""
    for start in range(0, len(array), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(array)))
        content = np.ascontiguousarray(array[rows].cpu().numpy()).reshape(rows.stop - start, -1).view(np.uint8)
        padding = -content.shape[1] % 4
        yield rows, (np.pad(content, ((0, 0), (0, padding))) if padding else content).view(np.uint32)


def _count_equal(data: FederatedData, hashes: NDArray[np.uint64], test_hashes: NDArray[np.uint64]) -> int:
    """Return the number of test samples that equal a client's sample; all samples with equal hashes are compared."""
    order = np.argsort(hashes, kind="stable")
    places = np.searchsorted(hashes[order], test_hashes)
    places[places == len(hashes)] = 0
    rows = order[places]
    alike = np.flatnonzero(hashes[rows] == test_hashes)
    return sum(
        int(torch.equal(data.x[row], data.test_x[i]) and torch.equal(data.y[row], data.test_y[i]))
        for i, row in zip(alike.tolist(), rows[alike].tolist(), strict=True)
    )
