"""FedProx's synthetic(alpha, beta) and synthetic_iid (Li et al. 2020, arXiv:1812.06127, section 5.1)."""

import random

import numpy as np
import torch
from numpy.typing import NDArray

from fedresearch.data.source import Samples, Source

DIMENSION = 60
NUM_CLASSES = 10


def load(*, alpha: float, beta: float, iid: bool = False, num_devices: int = 30, seed: int = 0) -> Source:
    """Generate softmax-regression data, a model and an input distribution for each device.

    The draws are those of the authors' ``generate_synthetic.py`` (``generate_iid.py``) after
    ``numpy.random.seed(seed)`` and ``random.seed(seed)``; the authors set no seed. As in these scripts, nine tenths of
    each device's shuffled samples are for training; the rest of all devices together is the test split.

    Parameters
    ----------
    alpha : float
        Standard deviation, over devices, of the mean of a device's model (the paper calls it a variance).
    beta : float
        Standard deviation, over devices, of the mean of a device's mean input (likewise).
    iid : bool
        Whether all devices share one model and one input distribution; ``alpha`` and ``beta`` then have no effect.
    num_devices : int
        Number of devices, which are the samples' natural ids.
    seed : int
        Seed of everything drawn.
    """
    numpy_draws = np.random.RandomState(seed)
    xs, ys = zip(*_draw_devices(numpy_draws, alpha, beta, iid, num_devices), strict=True)
    python_draws = random.Random(seed)
    train, test = [], []
    start = 0
    for y in ys:
        rows = list(range(start, start + len(y)))
        python_draws.shuffle(rows)
        num_train = int(0.9 * len(y))
        train += rows[:num_train]
        test += rows[num_train:]
        start += len(y)
    x, y = torch.from_numpy(np.concatenate(xs)), torch.from_numpy(np.concatenate(ys))
    device = np.repeat(np.arange(num_devices), [len(y) for y in ys])
    of_train, of_test = (Samples(x[rows], y[rows], device[rows]) for rows in (train, test))
    return Source(of_train, of_test)


def _draw_devices(
    draws: np.random.RandomState, alpha: float, beta: float, iid: bool, num_devices: int
) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Return each device's inputs and labels, drawn in the order of the authors' scripts."""
    sizes = draws.lognormal(4, 2, num_devices).astype(int) + 50
    # One by one, as the authors do: NumPy's vectorised power may differ in the last bit.
    covariance = np.diag([np.power(j, -1.2) for j in range(1, DIMENSION + 1)])
    means = np.zeros((num_devices, DIMENSION))
    if iid:
        model = _draw_model(draws, 0.0)
    else:
        model_means = draws.normal(0, alpha, num_devices)
        input_means = draws.normal(0, beta, num_devices)
        for mean, input_mean in zip(means, input_means, strict=True):
            mean[:] = draws.normal(input_mean, 1, DIMENSION)
    devices = []
    for k, size in enumerate(sizes):
        weight, bias = model if iid else _draw_model(draws, model_means[k])
        x = draws.multivariate_normal(means[k], covariance, size)
        devices.append((x, np.argmax(x @ weight + bias, axis=1)))
    return devices


def _draw_model(draws: np.random.RandomState, mean: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weight = draws.normal(mean, 1, (DIMENSION, NUM_CLASSES))
    return weight, draws.normal(mean, 1, NUM_CLASSES)
