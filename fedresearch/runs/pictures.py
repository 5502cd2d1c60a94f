"""The pictures of what a run's files hold: who has which samples, and what the final model takes them for."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedresearch.drawings import confusion, partition
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.errors import InputError
from fedresearch.runs.directory import CONFUSION, PARTITION
from fedresearch.runs.files import read_bytes

MAX_CLIENTS = 100  # more bars than these cannot be distinguished
_MAX_BUBBLES = 40, 20  # clients and classes
_MAX_BYTES = 64_000_000


def class_counts(directory: Path) -> NDArray[np.int64] | None:
    """Return the samples of each class on each client, int64 (clients, classes); None if it is not recorded."""
    table = _integers(directory / PARTITION[0])
    return table[:, 4:] if table is not None and table.shape[1] > 4 else None


def confusion_counts(directory: Path) -> NDArray[np.int64] | None:
    """Return the test samples of each class that the final model takes for each class, int64 (true, predicted)."""
    table = _integers(directory / CONFUSION)
    return table[:, 1:] if table is not None and table.shape[1] == len(table) + 1 else None


def class_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a confusion matrix as shares of each true class, float64 (true, predicted); NaN for no samples."""
    size = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, size, out=np.full(counts.shape, np.nan), where=size > 0)


def partition_picture(counts: NDArray[np.int64], title: str, page: Mapping[str, Any]) -> Picture:
    """Return the picture of a partition.

    Parameters
    ----------
    counts : ndarray
        int64 (clients, classes).
    page : mapping
        Width and font.
    """
    drawn = counts[:MAX_CLIENTS]
    most_clients, most_classes = _MAX_BUBBLES
    some = f" ({len(drawn)} of {len(counts)})" * (len(counts) > len(drawn))
    spec = {
        "kind": "bubbles" if len(drawn) <= most_clients and drawn.shape[1] <= most_classes else "bars",
        "x_label": f"Client{some}",
        "title": title,
        **page,
    }
    client, number = (column.ravel().astype(float) for column in np.indices(drawn.shape))
    data = {"client": client, "class": number, "samples": drawn.ravel().astype(float)}
    distance, moved = heterogeneity(counts)
    caption = f"Samples of each class on each client: {title}."
    if spec["kind"] == "bubbles":
        caption += f" The largest bubble has {drawn.max():,}."
    if math.isfinite(distance):
        caption += (
            " Class shares of a client against those of all, mean over clients: Jensen-Shannon distance "
            f"{distance:.2f} (0 to 1), earth mover's distance {moved:.2f} (0 to 2, Zhao et al. 2018)."
        )
    return Picture(partition, data, spec, caption)


def confusion_picture(counts: Mapping[str, NDArray[np.int64]], caption: str, page: Mapping[str, Any]) -> Picture:
    """Return the picture of confusion matrices, in shares of each true class.

    Parameters
    ----------
    counts : mapping
        A panel's title to int64 (true, predicted), all of one shape.
    page : mapping
        Width, font and columns.
    """
    parts = []
    for panel, of_panel in counts.items():
        true, predicted = (number.ravel() for number in np.indices(of_panel.shape))
        parts.append({"panel": panel, "true": true, "predicted": predicted, "share": class_shares(of_panel).ravel()})
    spec = {
        "panels": [*counts],
        "x_label": "Predicted class",
        "y_label": "True class",
        "colour_label": "Share of the true class (%)",
        **page,
    }
    return Picture(confusion, concatenated(parts, ("panel", "true", "predicted", "share")), spec, caption)


def heterogeneity(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return how far clients' class shares are from those of all samples, means over the clients that have samples.

    Parameters
    ----------
    counts : ndarray
        int64 (clients, classes).

    Returns
    -------
    float, float
        The Jensen-Shannon distance to base 2, in [0, 1] (Endres and Schindelin 2003), and the earth mover's distance as
        Zhao et al. 2018 define it, the sum of absolute differences, in [0, 2]. NaN without samples.
    """
    held = counts[counts.sum(axis=1) > 0].astype(float)
    if not len(held):
        return math.nan, math.nan
    shares, whole = held / held.sum(axis=1, keepdims=True), held.sum(axis=0) / held.sum()
    middle = (shares + whole) / 2
    divergence = (_relative_entropy(shares, middle) + _relative_entropy(whole, middle)) / 2
    return float(np.sqrt(np.maximum(divergence, 0)).mean()), float(np.abs(shares - whole).sum(axis=1).mean())


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.divide(p, q, out=np.ones_like(q), where=(p > 0) & (q > 0))
    entropy: NDArray[np.float64] = (p * np.log2(ratio, out=np.zeros_like(q), where=ratio > 0)).sum(axis=-1)
    return entropy


def _integers(path: Path) -> NDArray[np.int64] | None:
    """Return the table of whole numbers in a CSV with a heading; None without one."""
    try:
        with warnings.catch_warnings(action="error"):  # NumPy only warns of an empty file
            lines = read_bytes(path, _MAX_BYTES).decode().splitlines()
            return np.loadtxt(lines, np.int64, delimiter=",", skiprows=1, ndmin=2)
    except (OSError, ValueError, UserWarning, InputError):
        return None
