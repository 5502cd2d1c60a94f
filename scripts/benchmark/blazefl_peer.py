"""BlazeFL: its FedAvg, in one process or in its pool of processes, forked anew each round, with shared memory."""

import copy
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # SGD imports it when first used: in each process of each round, unless it is there
from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgProcessPoolClientTrainer
from blazefl.core import IPCMode, ModelSelector, PartitionedDataset
from torch.utils.data import DataLoader, TensorDataset

from scripts.benchmark.turns import Epochs, Job, load


class Name(StrEnum):
    """The models."""

    NET = "net"


# Where forked processes find them: BlazeFL pickles the selector and the dataset for each client.
_jobs: list[Job] = []
_datasets: list[TensorDataset] = []
_epochs: list[Epochs] = []


class Selector(ModelSelector[Name]):
    """Returns the initial model."""

    def select_model(self, model_name: Name) -> Any:
        """Return a copy of the initial model."""
        return copy.deepcopy(_jobs[0].model)


class Clients(PartitionedDataset):
    """Clients' tensors, of which a loader takes a batch at once: those that ours draws."""

    def get_dataset(self, type_: Any, cid: int) -> TensorDataset:
        """Return a client's samples."""
        return _datasets[cid]

    def set_dataset(self, type_: Any, cid: int, dataset: Any) -> None:
        """Change nothing."""

    def get_dataloader(self, type_: Any, cid: int, batch_size: Any = None, generator: Any = None) -> DataLoader[Any]:
        """Return a client's loader."""
        return DataLoader(_datasets[cid], batch_size=None, sampler=_epochs[cid])


def main(job: Job) -> None:
    _jobs.append(job)
    _datasets.extend(TensorDataset(x, y) for x, y in job.clients)
    _epochs.extend(Epochs(job, client) for client in range(len(job.clients)))
    selector, clients = Selector(), Clients()
    num_clients, cohort = len(job.clients), len(job.cohorts[0])
    handler = FedAvgBaseServerHandler(
        selector, Name.NET, clients, len(job.cohorts), num_clients, cohort / num_clients, "cpu", job.batch_size, 0
    )
    options: dict[str, Any] = {
        "model_selector": selector,
        "model_name": Name.NET,
        "dataset": clients,
        "device": "cpu",
        "num_clients": num_clients,
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "lr": job.lr,
        "seed": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        if job.cores == 1:
            trainer: Any = FedAvgBaseClientTrainer(**options)
        else:
            trainer = FedAvgProcessPoolClientTrainer(
                **options,
                num_parallels=job.cores,
                ipc_mode=IPCMode.SHARED_MEMORY,
                share_dir=Path(folder, "share"),
                state_dir=Path(folder, "state"),
            )
        for server_round in job.rounds(handler.model.state_dict):
            trainer.local_process(handler.downlink_package(), job.cohorts[server_round - 1])
            for package in trainer.uplink_package():
                handler.load(package)


if __name__ == "__main__":
    torch.multiprocessing.set_start_method("fork")
    main(load(sys.argv[1], int(sys.argv[2])))
