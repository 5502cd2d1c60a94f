"""What a round cannot be faster than: its arithmetic, and what it moves, at the speed of this machine."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedresearch.hardware.cores import num_cores
from scripts.benchmark.ours import sampling_of
from scripts.benchmark.workloads import Workload, initial_state


def speed() -> dict[str, float]:
    """Return what the machine does on all cores: floating-point operations of a matrix product, and bytes of a copy."""
    torch.set_num_threads(num_cores())
    a, b = torch.rand(2048, 2048), torch.empty(2048, 2048)
    x, y = torch.zeros(2**26), torch.zeros(2**26)
    found = {
        "flop_per_s": 2 * 2048**3 / _fastest(lambda: torch.mm(a, a, out=b)),
        "bytes_per_s": 2 * x.nbytes / _fastest(lambda: y.copy_(x)),  # read and written
    }
    torch.set_num_threads(1)
    return found


def _fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def round_work(work: Workload, data: Any, rounds: int) -> dict[str, float]:
    """Return a round's floating-point operations and the bytes it moves at least, the mean of some rounds.

    The operations are those of the matrix products and convolutions. The bytes are each sample, read once a round, and
    each client's model, written once and read once.
    """
    sampling = sampling_of(work, data)
    cohorts = [sampling(server_round) for server_round in range(2, rounds + 2)]
    num_samples = sum(len(data.train[i]) for cohort in cohorts for i in cohort) / rounds
    num_trained = work.cohort * work.local.steps * work.local.batch_size if work.local.steps else num_samples
    model_bytes = sum(tensor.nbytes for tensor in initial_state(work).values())
    x, y = data.train_samples(0)
    x, y = x[: work.local.batch_size], y[: work.local.batch_size]
    sample_bytes, flop, evaluated = x[:1].nbytes + y[:1].nbytes, 0.0, 0
    if not work.null:
        model = work.model()
        with FlopCounterMode(display=False) as forward:
            loss = F.cross_entropy(model(x), y)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        evaluated = sum(map(len, data.validation)) if work.evaluates else 0
        trained_flop = (forward.get_total_flops() + backward.get_total_flops()) * (work.local.epochs or 1)
        flop = (trained_flop * num_trained + forward.get_total_flops() * evaluated) / len(y)
    moved = 2 * work.cohort * model_bytes + sample_bytes * (num_samples * (not work.null) + evaluated)
    return {"flop": flop, "bytes": moved}


def bound(own: dict[str, float], machine: dict[str, float]) -> float:
    """Return the seconds of a round that computes and moves at once, and does nothing else."""
    return max(own["flop"] / machine["flop_per_s"], own["bytes"] / machine["bytes_per_s"])
