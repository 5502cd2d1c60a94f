"""Time our training against a bare PyTorch loop that does the same arithmetic, as ratios within one run.

    python scripts/benchmark.py [--hardware cpu] [--workloads W1a W1b W2 W3] [--repeats 15] [--json FILE]

Both sides take turns on the same clients, so that a drift of the machine's speed hits both alike. The first cohort is
not counted, but its seconds are told: on batched it compiles. Two ratios:

  local   one cohort's local training: ours (``fedresearch.local``) over the bare loop. On cpu to be at most 1.10.
  round   a whole round: ours (messages, metrics, hash of the model) over the bare loop with its weighted average.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from fedresearch.apps import flower
from fedresearch.apps.client_app import Clients, train_each
from fedresearch.apps.records import record_of
from fedresearch.apps.rounds import RoundLoop
from fedresearch.apps.sampling import Sampling, uniform
from fedresearch.data.federated import FederatedData
from fedresearch.data.source import Samples, Source
from fedresearch.hardware.batched import BatchedGrid
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.local.cohort import CohortTrainer
from fedresearch.local.train import Schedule, Task
from fedresearch.local.update import LocalUpdate
from fedresearch.models.lenet import LeNet
from fedresearch.models.logistic import Logistic
from fedresearch.models.mlp import MLP


@dataclass(frozen=True)
class Workload:
    """What the clients hold and how they train."""

    samples: Samples
    sizes: list[int]
    model: Callable[[], nn.Module]
    schedule: Schedule
    lr: float
    cohort_size: int = 10


def w1a() -> Workload:
    """Return softmax regression's on 60 features, 1,000 clients of log-normal sizes, mean 60."""
    rng = np.random.default_rng(0)
    raw = rng.lognormal(0.0, 1.0, 1000)
    sizes = np.maximum(10, raw / raw.mean() * 60).astype(int).tolist()
    x = torch.from_numpy(rng.normal(size=(sum(sizes), 60)).astype(np.float32))
    y = torch.from_numpy((x.numpy() @ rng.normal(size=(60, 10))).argmax(1))
    return Workload(Samples(x, y), sizes, lambda: Logistic((60,), 10), Schedule(1, None, 10), 0.01)


def w1b() -> Workload:
    """Return the same, all clients a round."""
    return replace(w1a(), cohort_size=1000)


def w2() -> Workload:
    """Return an MLP's on scikit-learn's digits, 100 clients, five local epochs."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.from_numpy((digits.data[order] / 16).astype(np.float32))
    sizes = [len(part) for part in np.array_split(order, 100)]
    samples = Samples(x, torch.from_numpy(digits.target[order].astype(np.int64)))
    return Workload(samples, sizes, lambda: MLP((64,), 10, widths=[200]), Schedule(5, None, 10), 0.05)


def w3() -> Workload:
    """Return LeNet's on tensors shaped as CIFAR-10's, 100 clients of 500 images, five local epochs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (50_000,), generator=generator)
    return Workload(Samples(x, y), [500] * 100, lambda: LeNet((3, 32, 32), 10), Schedule(5, None, 50), 0.01)


WORKLOADS = {"W1a": w1a, "W1b": w1b, "W2": w2, "W3": w3}


def bare_training(model: nn.Module, x: Tensor, y: Tensor, work: Workload, generator: torch.Generator) -> None:
    """Train as a careful researcher's loop does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for _ in range(work.schedule.epochs or 0):
        for batch in torch.randperm(len(y), generator=generator).split(work.schedule.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def measure(work: Workload, repeats: int, hardware: str) -> dict[str, float]:
    """Return the medians, in seconds a cohort, and the two ratios."""
    bounds = np.cumsum([0, *work.sizes])
    rows = [np.arange(start, stop) for start, stop in pairwise(bounds)]
    none = [np.zeros(0, dtype=np.int64)] * len(rows)
    data = FederatedData.build(Source(work.samples, work.samples), rows, none, torch.float32)
    model = work.model()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, update = torch.optim.SGD, LocalUpdate()
    app = Clients(
        model=model,
        data=data,
        update=update,
        personal=frozenset(),
        optimizer=optimizer,
        schedule=work.schedule,
        keep_optimizer_state=False,
        seed=0,
    )
    grid = BatchedGrid(app, len(rows), None, True) if hardware == "batched" else InProcessGrid(app, len(rows))
    trainer = CohortTrainer(None, True, max(work.sizes)) if hardware == "batched" else train_each
    sampling = Sampling(uniform, work.sizes, work.cohort_size, 0, "train-sampling")
    stages = update.stages(model)
    loop = RoundLoop(
        strategy=FedAvg(min_train_nodes=1, min_available_nodes=1),
        num_rounds=0,
        train_cohort=sampling,
        evaluate_cohort=lambda _: [],
        evaluate_every=10**9,
        parameters=frozenset(initial),
        client_config=lambda _: {"lr": work.lr},
        evaluate=lambda _: {},
        log=lambda _: None,
    )

    def ours_local(cohort: list[int]) -> None:
        tasks = [
            Task(initial, *data.train_samples(i), update, stages, {"lr": work.lr}, batches_seed=i, dropout_seed=i)
            for i in cohort
        ]
        list(trainer(tasks, model, optimizer=optimizer, schedule=work.schedule))

    def bare_local(cohort: list[int]) -> None:
        for i in cohort:
            model.load_state_dict(initial)
            bare_training(model, *data.train_samples(i), work, torch.Generator().manual_seed(i))

    def bare_round(cohort: list[int]) -> None:
        total = sum(work.sizes[i] for i in cohort)
        average = {name: torch.zeros_like(tensor) for name, tensor in initial.items()}
        for i in cohort:
            model.load_state_dict(initial)
            bare_training(model, *data.train_samples(i), work, torch.Generator().manual_seed(i))
            for name, tensor in model.state_dict().items():
                average[name].add_(tensor, alpha=work.sizes[i] / total)

    arrays = record_of(initial)
    sides: dict[str, Callable[[int], object]] = {
        "local_ours": lambda r: ours_local(sorted(sampling(r))),
        "local_bare": lambda r: bare_local(sorted(sampling(r))),
        "round_ours": lambda r: loop._round(r, grid, arrays),
        "round_bare": lambda r: bare_round(sorted(sampling(r))),
    }
    gc.freeze()  # as an experiment does when it is built
    times: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):  # the first is a warm-up
        for side, call in sides.items():
            started = time.perf_counter()
            call(repeat)
            times[side].append(time.perf_counter() - started)
    figures = {side: statistics.median(values[1:]) for side, values in times.items()}
    figures["first_s"] = times["local_ours"][0]
    for kind in ("local", "round"):
        pairs = zip(times[f"{kind}_ours"][1:], times[f"{kind}_bare"][1:], strict=True)
        figures[f"{kind}_ratio"] = statistics.median(ours / bare for ours, bare in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", choices=["cpu", "batched"], default="cpu")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--repeats", type=int, default=15, help="counted cohorts of each side")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    flower.quieten()
    print(f"torch {torch.__version__}, one thread, {platform.machine()}; medians of {arguments.repeats}, milliseconds")
    print("| workload | local: ours | bare | ratio | round: ours | bare | ratio | first, s |\n" + "|---" * 8 + "|")
    results = {}
    for name in arguments.workloads:
        results[name] = figures = measure(WORKLOADS[name](), arguments.repeats, arguments.hardware)
        cells = [
            f"{figures[f'{kind}_{side}'] * 1000:.2f}" if side != "ratio" else f"**{figures[f'{kind}_ratio']:.2f}**"
            for kind in ("local", "round")
            for side in ("ours", "bare", "ratio")
        ]
        print(f"| {name} | {' | '.join(cells)} | {figures['first_s']:.1f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
