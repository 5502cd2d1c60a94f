"""What a peer's process does: it gets the workload as a file, and runs a round when it is asked to.

It runs in the peers' environment, which has PyTorch but not what ours needs beside it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from fedresearch.seeding import derive_seed


@dataclass
class Job:
    """A workload without what made it.

    Attributes
    ----------
    model : nn.Module
        The initial model.
    clients : list of (Tensor, Tensor)
        What each client trains on.
    cohorts : list of list of int
        Who trains in each round, from round 1.
    lr, epochs, batch_size
        How a client trains, by SGD.
    cores : int
        On how many cores.
    """

    model: nn.Module
    clients: list[tuple[Tensor, Tensor]]
    cohorts: list[list[int]]
    lr: float
    epochs: int
    batch_size: int
    cores: int
    server_round: int = 0

    def rounds(self, state: Callable[[], dict[str, Tensor]]) -> Iterator[int]:
        """Yield the number of each round when it is asked for, and report it as done when the next is waited for.

        Instead of a number comes where to write the model that ``state`` returns.
        """
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a framework prints is no answer
        for line in sys.stdin:
            if line.strip().isdigit():
                self.server_round = int(line)
                yield self.server_round
            elif line.strip():
                torch.save(state(), line.strip())
            print("done", file=out, flush=True)


def load(path: str, cores: int) -> Job:
    """Read a workload; its tensors stay in the file's pages, which all peers share."""
    torch.set_num_threads(1)
    return Job(**torch.load(path, mmap=True, weights_only=False), cores=cores)


class Epochs:
    """A client's batches, epoch after epoch: those that ours draws."""

    def __init__(self, job: Job, client: int) -> None:
        self._job, self._client = job, client
        self._round, self._generator = 0, Generator()

    def __len__(self) -> int:
        return -(-len(self._job.clients[self._client][1]) // self._job.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        job = self._job
        if self._round != job.server_round:
            self._round = job.server_round
            self._generator.manual_seed(derive_seed(0, "batches", self._round, self._client))
        num_samples = len(job.clients[self._client][1])
        return iter(torch.randperm(num_samples, generator=self._generator).split(job.batch_size))
