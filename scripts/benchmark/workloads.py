"""What is computed, the same for every side: the clients' data, made from a seed, the model, how a client trains."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from fedresearch.data.federated import FederatedData
from fedresearch.data.source import Samples, Source
from fedresearch.local.objective import unchanged
from fedresearch.local.train import LocalWork
from fedresearch.models.lenet import LeNet
from fedresearch.models.logistic import Logistic
from fedresearch.models.mlp import MLP

HARDWARE = ("cpu", "workers", "batched")
PEERS = ("pfl", "fedjax", "blazefl")


@dataclass(frozen=True)
class Workload:
    """A federation and its clients' training.

    Attributes
    ----------
    about : str
        A line for the report.
    data : callable
        Makes what the clients hold: a :class:`FederatedData`, or what can stand for one.
    model : callable
        Makes the model.
    cohort : int
        Clients that train in a round.
    local, lr, optimizer
        How each trains.
    rounds, flower_rounds, flower_blocks : int
        Timed rounds of ours and of the loop; of Flower's in each of so many simulations, between which ours continue.
    hardware : tuple of str
        Ours that are timed where nothing else is asked for.
    threaded : bool
        Whether the loop is also timed on as many torch threads as there are cores.
    evaluates : bool
        Whether in each round all clients evaluate the new model.
    peers : tuple of str
        Other frameworks that are timed where they are installed.
    null : bool
        Whether a client does nothing but return its parameters plus 0.001.
    """

    about: str
    data: Callable[[], Any]
    model: Callable[[], nn.Module]
    cohort: int
    local: LocalWork
    lr: float
    optimizer: type[Optimizer] = SGD
    rounds: int = 5
    flower_rounds: int = 3
    flower_blocks: int = 2
    hardware: tuple[str, ...] = HARDWARE
    threaded: bool = False
    evaluates: bool = False
    peers: tuple[str, ...] = ()
    null: bool = False


def local_sgd(model: nn.Module, x: Tensor, y: Tensor, work: Workload, generator: Generator) -> None:
    """Train as a careful researcher's loop does."""
    optimizer = work.optimizer(model.parameters(), lr=work.lr)
    model.train()
    left = work.local.steps
    for _ in range(work.local.epochs or 1):
        for batch in torch.randperm(len(y), generator=generator).split(work.local.batch_size)[:left]:
            optimizer.zero_grad()
            rows = batch.to(y.device)
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


@functools.cache
def data_of(name: str) -> Any:
    """Return a workload's data, made once a process."""
    return WORKLOADS[name].data()


def initial_state(work: Workload) -> dict[str, Tensor]:
    """Return the same initial weights wherever it is called."""
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in work.model().state_dict().items()}


def _federated(x: Tensor, y: Tensor, sizes: Sequence[int], num_validation: int = 0) -> FederatedData:
    """Give each client its next samples, the last few of them to validate on."""
    rows = [np.arange(start, stop) for start, stop in pairwise(np.cumsum([0, *sizes]).tolist())]
    train = [own[: len(own) - num_validation] for own in rows]
    validation = [own[len(own) - num_validation :] for own in rows]
    samples = Samples(x, y)
    return FederatedData.build(Source(samples, Samples(x[:0], y[:0])), train, validation, torch.float32)


def tutorial_pixels(num_images: int = 50_000) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of CIFAR-10's shape, which carry their class in their brightness, and the classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, num_images)
    noise = rng.integers(0, 80, (num_images, 32, 32, 3), dtype=np.uint8)
    return noise + (labels[:, None, None, None] * 17).astype(np.uint8), labels


def _tutorial() -> FederatedData:
    pixels, labels = tutorial_pixels()
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return _federated(x.contiguous(), torch.from_numpy(labels), [len(labels) // 10] * 10, len(labels) // 50)


def log_normal_sizes(num_clients: int) -> list[int]:
    raw = np.random.default_rng(0).lognormal(0.0, 1.0, num_clients)
    sizes: list[int] = np.maximum(10, raw / raw.mean() * 60).astype(int).tolist()
    return sizes


def _softmax_regression(num_clients: int = 1000) -> FederatedData:
    rng, sizes = np.random.default_rng(0), log_normal_sizes(num_clients)
    x = rng.normal(size=(sum(sizes), 60)).astype(np.float32)
    y = (x @ rng.normal(size=(60, 10))).argmax(1)
    return _federated(torch.from_numpy(x), torch.from_numpy(y), sizes)


def _digits(num_clients: int = 100) -> FederatedData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.from_numpy((digits.data[order] / 16).astype(np.float32))
    sizes = [len(part) for part in np.array_split(order, num_clients)]
    return _federated(x, torch.from_numpy(digits.target[order].astype(np.int64)), sizes)


def _images(num_clients: int, num_samples: int) -> FederatedData:
    generator = Generator().manual_seed(0)
    x = torch.randn(num_clients * num_samples, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (len(x),), generator=generator)
    return _federated(x, y, [num_samples] * num_clients)


def _one_sample_each(num_clients: int, shape: tuple[int, ...]) -> FederatedData:
    return _federated(torch.zeros(num_clients, *shape), torch.zeros(num_clients, dtype=torch.int64), [1] * num_clients)


class LazyData:
    """What stands for a :class:`FederatedData` of any number of clients: a client's samples are made when asked for.

    Client i holds client (i mod 1000)'s of W1a, shifted a little by i.
    """

    def __init__(self, num_clients: int) -> None:
        self._few = _softmax_regression()
        self.x, self.y = self._few.x[:0], self._few.y[:0]
        self.num_partitions = num_clients
        self.train = _Lengths([len(rows) for rows in self._few.train], num_clients)
        self.validation = _Lengths([0], num_clients)
        self.prepare, self.normalise = unchanged, None

    def train_samples(self, partition_id: int) -> tuple[Tensor, Tensor]:
        """Make one client's training samples."""
        x, y = self._few.train_samples(partition_id % 1000)
        return x + (partition_id // 1000) * 1e-6, y

    def pool(self, partition_ids: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Make many clients' training samples."""
        parts = [self.train_samples(i) for i in partition_ids]
        sizes = np.array([len(y) for _, y in parts])
        x, y = (torch.cat(arrays).numpy() for arrays in zip(*parts, strict=True))
        return x, y, np.cumsum(sizes) - sizes, sizes

    def without_test(self) -> "LazyData":
        """Return itself: there is no test split to leave out."""
        return self


class _Lengths(Sequence[range]):
    """As many ranges of given lengths as there are clients, none of which is held."""

    def __init__(self, lengths: list[int], num_clients: int) -> None:
        self._lengths, self._num_clients = lengths, num_clients

    def __len__(self) -> int:
        return self._num_clients

    def __getitem__(self, partition_id: Any) -> Any:
        if partition_id >= self._num_clients:
            raise IndexError(partition_id)
        return range(self._lengths[partition_id % len(self._lengths)])


def _logistic() -> nn.Module:
    return Logistic((60,), 10)


def _mlp() -> nn.Module:
    return MLP((64,), 10, widths=[200])


def _lenet() -> nn.Module:
    return LeNet((3, 32, 32), 10)


def _resnet() -> nn.Module:
    from fedresearch.models.resnet import ResNet18

    return ResNet18((3, 32, 32), 10)


def _scale(num_clients: int) -> Workload:
    return Workload(
        f"softmax regression, {min(1000, num_clients)} of {num_clients:,} clients, lazy data",
        functools.partial(LazyData, num_clients),
        _logistic,
        min(1000, num_clients),
        LocalWork(1, None, 10),
        0.01,
        rounds=5,
        flower_rounds=2 if num_clients == 10_000 else 0,
        flower_blocks=1,
    )


_W1A = Workload(
    about="softmax regression on 60 features, 10 of 1,000 clients of log-normal sizes, mean 60, B=10, E=1",
    data=_softmax_regression,
    model=_logistic,
    cohort=10,
    local=LocalWork(1, None, 10),
    lr=0.01,
    rounds=100,
    flower_rounds=20,
    peers=PEERS,
)
_W4 = Workload(
    about="CIFAR-shaped tensors, ResNet-18 with group normalisation (11.2M parameters), 10 clients, a step of B=10",
    data=functools.partial(_images, 10, 10),
    model=_resnet,
    cohort=10,
    local=LocalWork(None, 1, 10),
    lr=0.01,
    rounds=4,
    hardware=("cpu", "workers"),
    threaded=True,
    peers=("pfl", "blazefl"),
)
_NULL = Workload(
    about="null client, 610 parameters, 100 clients",
    data=functools.partial(_one_sample_each, 100, (60,)),
    model=_logistic,
    cohort=100,
    local=LocalWork(None, 1, 1),
    lr=0.01,
    rounds=20,
    flower_rounds=5,
    flower_blocks=1,
    null=True,
)
WORKLOADS: dict[str, Workload] = {
    "W0": Workload(
        about="Flower's tutorial: CIFAR-shaped images, LeNet, 5 of 10 clients train and 10 evaluate, B=32, E=1, Adam",
        data=_tutorial,
        model=_lenet,
        cohort=5,
        local=LocalWork(1, None, 32),
        lr=0.01,
        optimizer=Adam,
        rounds=3,
        flower_blocks=1,
        hardware=("cpu", "workers"),
        threaded=True,
        evaluates=True,
    ),
    "W1a": _W1A,
    "W1b": replace(
        _W1A,
        about="softmax regression on 60 features, all of 1,000 clients of log-normal sizes, mean 60, B=10, E=1",
        cohort=1000,
        rounds=8,
        flower_rounds=3,
    ),
    "W2": Workload(
        about="scikit-learn's digits, MLP 64-200-10, 10 of 100 clients, B=10, E=5",
        data=_digits,
        model=_mlp,
        cohort=10,
        local=LocalWork(5, None, 10),
        lr=0.05,
        rounds=60,
        flower_rounds=20,
        peers=PEERS,
    ),
    "W3": Workload(
        about="CIFAR-shaped tensors, LeNet, 10 of 100 clients of 500 images, B=50, E=5",
        data=functools.partial(_images, 100, 500),
        model=_lenet,
        cohort=10,
        local=LocalWork(5, None, 50),
        lr=0.01,
        rounds=4,
        hardware=("cpu", "workers"),
        threaded=True,
        peers=PEERS,
    ),
    "W4": _W4,
    "W7": replace(
        _W4,
        about="CIFAR-shaped tensors, ResNet-18 with group normalisation (11.2M parameters), 100 clients, one step",
        data=functools.partial(_images, 100, 10),
        cohort=100,
        rounds=2,
        flower_rounds=0,
        hardware=("workers",),
        peers=(),
    ),
    "W5-610": _NULL,
    "W5-62k": replace(
        _NULL,
        about="null client, LeNet's 62,006 parameters, 100 clients",
        data=functools.partial(_one_sample_each, 100, (3, 32, 32)),
        model=_lenet,
    ),
    "W5-11M": replace(
        _NULL,
        about="null client, ResNet-18's 11.2M parameters, 20 clients",
        data=functools.partial(_one_sample_each, 20, (3, 32, 32)),
        model=_resnet,
        cohort=20,
        rounds=3,
        flower_rounds=2,
    ),
    # The size of the default experiment, for Flower's cold start.
    "cold": Workload(
        about="scikit-learn's digits, MLP 64-200-10, 5 of 10 clients, B=10, E=5",
        data=functools.partial(_digits, 10),
        model=_mlp,
        cohort=5,
        local=LocalWork(5, None, 10),
        lr=0.05,
    ),
    **{f"W6-{num_clients}": _scale(num_clients) for num_clients in (1_000, 10_000, 100_000, 1_000_000)},
}
