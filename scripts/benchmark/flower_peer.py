"""Flower's own simulation on Ray, with a careful client; for W0, with the tutorial's own code.

A process of its own: Ray's workers and Flower's threads disturb nobody's rounds. Each client is given one CPU, so that
there is one actor a core. Rounds are timed from one ``configure_train`` to the next, so that start-up counts in none.
"""

import argparse
import functools
import io
import json
import os
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Generator
from torch.nn import functional as F

from fedresearch.seeding import derive_seed
from scripts.benchmark.peers import loss
from scripts.benchmark.workloads import WORKLOADS, data_of, initial_state, local_sgd, tutorial_pixels


class TimedFedAvg(FedAvg):
    """FedAvg that notes when each round begins."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.marks: list[float] = []
        self.clock = 0.0  # when the first round had ended

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the time, and do as FedAvg."""
        self.marks.append(time.perf_counter())
        self.clock = self.clock or (time.time() if len(self.marks) == 2 else 0.0)
        return super().configure_train(server_round, arrays, config, grid)


@functools.cache
def _model(name: str) -> torch.nn.Module:
    return WORKLOADS[name].model()


def train(name: str, message: Message, context: Context) -> Message:
    """Train as the bare loop does, on tensors that stay in the actor."""
    work = WORKLOADS[name]
    arrays = message.content.array_records["arrays"]
    partition_id = int(context.node_config["partition-id"])
    data = data_of(name)
    if work.null:
        sent = ArrayRecord({key: Array(array.numpy() + 1e-3) for key, array in arrays.items()})
    else:
        x, y = data.train_samples(partition_id)
        model = _model(name)
        model.load_state_dict(arrays.to_torch_state_dict())
        server_round = message.content.config_records["config"]["server-round"]
        local_sgd(model, x, y, work, Generator().manual_seed(derive_seed(0, "batches", server_round, partition_id)))
        sent = ArrayRecord(model.state_dict())
    metrics = MetricRecord({"num-examples": len(data.train[partition_id])})
    return Message(RecordDict({"arrays": sent, "metrics": metrics}), reply_to=message)


def careful_app(name: str) -> ClientApp:
    """Return the ClientApp of a workload."""
    app = ClientApp()
    app.train()(lambda message, context: train(name, message, context))
    return app


# From here to tutorial_app, Flower's tutorial as it is written, but for the dataset's place: a folder, not the Hub.

fds: Any = None


def load_data(partition_id: int, num_partitions: int) -> tuple[Any, Any]:
    """Load partition CIFAR10 data."""
    import datasets
    from flwr_datasets.partitioner import IidPartitioner
    from torch.utils.data import DataLoader
    from torchvision.transforms import Compose, Normalize, ToTensor

    global fds
    if fds is None:
        datasets.disable_progress_bars()
        fds = IidPartitioner(num_partitions=num_partitions)
        # What FederatedDataset gives its partitioners: the split in memory, shuffled.
        fds.dataset = datasets.load_from_disk(os.environ["TUTORIAL_IMAGES"], keep_in_memory=True).shuffle(seed=42)
    partition = fds.load_partition(partition_id)
    partition_train_test = partition.train_test_split(test_size=0.2, seed=42)
    pytorch_transforms = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])

    def apply_transforms(batch: Any) -> Any:
        batch["img"] = [pytorch_transforms(img) for img in batch["img"]]
        return batch

    partition_train_test = partition_train_test.with_transform(apply_transforms)
    trainloader = DataLoader(partition_train_test["train"], batch_size=32, shuffle=True)
    testloader = DataLoader(partition_train_test["test"], batch_size=32)
    return trainloader, testloader


def tutorial_train(message: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = WORKLOADS["W0"].model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    trainloader, _ = load_data(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    running_loss = 0.0
    for batch in trainloader:
        optimizer.zero_grad()
        batch_loss = criterion(model(batch["img"]), batch["label"])
        batch_loss.backward()
        optimizer.step()
        running_loss += batch_loss.item()
    metrics = MetricRecord({"train_loss": running_loss / len(trainloader), "num-examples": len(trainloader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def tutorial_evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = WORKLOADS["W0"].model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    _, testloader = load_data(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
    correct, total = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            outputs = model(batch["img"])
            total += F.cross_entropy(outputs, batch["label"]).item()
            correct += int((torch.max(outputs.data, 1)[1] == batch["label"]).sum().item())
    num_examples = len(testloader.dataset)
    metrics = {"eval_loss": total / len(testloader), "eval_acc": correct / num_examples, "num-examples": num_examples}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def tutorial_app() -> ClientApp:
    """Return the tutorial's ClientApp."""
    app = ClientApp()
    app.train()(tutorial_train)
    app.evaluate()(tutorial_evaluate)
    return app


def write_tutorial_images(folder: str) -> None:
    """Write the tutorial's images as a Hugging Face dataset of PNG files."""
    import datasets
    from PIL import Image

    def png(pixels: Any) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    pixels, labels = tutorial_pixels()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    columns = {"img": [png(image) for image in pixels], "label": labels}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)


def decode_seconds(folder: str) -> float:
    """Return how long it takes to decode all images once, which ours do before the first round."""
    import datasets
    import numpy as np

    images = datasets.load_from_disk(folder)
    started = time.perf_counter()
    for row in images:
        np.asarray(row["img"])
    return time.perf_counter() - started


def simulate(name: str, rounds: int) -> dict[str, Any]:
    """Run a simulation of some rounds and one before them, and return its times."""
    from flwr.simulation import run_simulation

    work, data = WORKLOADS[name], data_of(name)
    strategy = TimedFedAvg(
        fraction_train=work.cohort / data.num_partitions,
        fraction_evaluate=1.0 if work.evaluates else 0.0,
        min_train_nodes=1,
        min_evaluate_nodes=1 if work.evaluates else 0,
        min_available_nodes=1,
    )
    last: list[ArrayRecord] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(initial_state(work)),
            train_config=ConfigRecord({"lr": work.lr}),
            num_rounds=rounds + 1,
        )
        strategy.marks.append(time.perf_counter())
        last.append(result.arrays)

    started = time.perf_counter()
    run_simulation(
        server,
        tutorial_app() if name == "W0" else careful_app(name),
        num_supernodes=data.num_partitions,
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False},
        },
    )
    marks = strategy.marks
    if len(last[0]) == 0:
        raise RuntimeError("every client failed")
    return {
        "startup_s": marks[0] - started,
        "first_round_ended": strategy.clock,
        "first_s": marks[1] - marks[0],
        "rounds_s": [after - before for before, after in pairwise(marks[1:])],
        "strategy_s": marks[-1] - marks[0],
        "loss": loss(work, data, dict(last[0].to_torch_state_dict())),
    }


if __name__ == "__main__":
    # By its importable name: what an actor caches must not be pickled along with each message.
    from scripts.benchmark import flower_peer

    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as images:
        os.environ["TUTORIAL_IMAGES"] = images
        if arguments.name == "W0":
            write_tutorial_images(images)
        figures = flower_peer.simulate(arguments.name, arguments.rounds)
        if arguments.name == "W0":
            figures["decode_s"] = decode_seconds(images)
    arguments.out.write_text(json.dumps(figures))
