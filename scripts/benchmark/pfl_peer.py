"""Apple's pfl: its FederatedAveraging on its SimulatedBackend, as a process for each core, under torchrun."""

import sys
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional as F

from scripts.benchmark.turns import Epochs, Job, load

_ALL = 10**9  # a batch of all samples


class Drawn(PyTorchTensorDataset):
    """A client's samples in the batches that ours draws; pfl's own never shuffles."""

    def __init__(self, job: Job, client: int) -> None:
        super().__init__(job.clients[client])
        self._epochs = Epochs(job, client)

    def iter(self, batch_size: int) -> Any:
        """Yield an epoch's batches, or all samples, on which pfl evaluates in the first round."""
        x, y = self.raw_data
        for rows in self._epochs if batch_size < _ALL else [slice(None)]:
            yield x[rows], y[rows]


class Cohorts(FederatedDataset):
    """The clients that train in a round: those of ours, dealt out to the processes."""

    def __init__(self, job: Job) -> None:
        self._job, self._clients = job, [Drawn(job, client) for client in range(len(job.clients))]
        super().__init__(self._clients.__getitem__, lambda: 0)

    def get_cohort(self, cohort_size: int) -> Any:
        """Yield the clients of this process."""
        cohort = self._job.cohorts[self._job.server_round - 1][:cohort_size]
        for client in cohort[distributed.global_rank :: distributed.world_size]:
            yield self._clients[client], 0


class InTurns(TrainingProcessCallback):
    """Waits before each round; the first of several processes asks for all."""

    def __init__(self, job: Job) -> None:
        self._job, self._rounds = job, job.rounds(job.model.state_dict)

    def _wait(self) -> bool:
        number = torch.tensor(next(self._rounds, -1) if distributed.global_rank == 0 else 0)
        if distributed.world_size > 1:
            torch.distributed.broadcast(number, 0)
        self._job.server_round = int(number)
        return self._job.server_round < 0

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Wait for the first round."""
        self._wait()
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """Wait for the next round; stop if there is none."""
        return self._wait(), Metrics()


def main(job: Job) -> None:
    net: Any = job.model
    net.loss, net.metrics = lambda x, y: F.cross_entropy(net(x), y), lambda x, y: {}
    data = Cohorts(job)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(job.cohorts),
            evaluation_frequency=10**9,
            train_cohort_size=len(job.cohorts[0]),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(local_learning_rate=job.lr, local_num_epochs=job.epochs, local_batch_size=job.batch_size),
        NNEvalHyperParams(local_batch_size=_ALL),
        callbacks=[InTurns(job)],
        send_metrics_to_platform=False,
    )
    if distributed.world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(load(sys.argv[1], int(sys.argv[2])))
