"""What ours is held against: a bare PyTorch loop, here; Flower's simulation and others, in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fedresearch.seeding import derive_seed
from scripts.benchmark import environment
from scripts.benchmark.ours import ROOT, sampling_of
from scripts.benchmark.workloads import Workload, initial_state, local_sgd


class Loop:
    """The plain loop of a careful researcher: one model, data as tensors, the weighted average summed in place.

    It draws the cohorts and batches that ours draws. On a GPU, all data and models stay there.
    """

    def __init__(self, work: Workload, data: Any, threads: int = 1, averages: bool = True, device: str = "cpu") -> None:
        self._work, self._threads, self._averages = work, threads, averages
        self._data = data if device == "cpu" else data.to(device)
        self._model = work.model().to(device)
        self._global = {name: tensor.to(device) for name, tensor in initial_state(work).items()}
        self._sampling = sampling_of(work, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def round(self, server_round: int) -> None:
        """Train the cohort, and average what comes of it."""
        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(False)
        work, model, data = self._work, self._model, self._data
        cohort = sorted(self._sampling(server_round))
        total = sum(len(data.train[i]) for i in cohort)
        average = {name: torch.zeros_like(tensor) for name, tensor in self._global.items()}
        for i in cohort:
            if work.null:
                state = {name: tensor + 1e-3 for name, tensor in self._global.items()}
            else:
                x, y = data.train_samples(i)
                model.load_state_dict(self._global)
                local_sgd(model, x, y, work, Generator().manual_seed(derive_seed(0, "batches", server_round, i)))
                state = model.state_dict()
            if self._averages:
                for name, tensor in state.items():
                    average[name].add_(tensor, alpha=len(data.train[i]) / total)
        if self._averages:
            self._global = average
        if work.evaluates:
            model.load_state_dict(self._global)
            model.eval()
            with torch.inference_mode():
                for i in range(data.num_partitions):
                    x, y = data.validation_samples(i)
                    outputs = model(x)
                    F.cross_entropy(outputs, y).item(), (outputs.argmax(1) == y).sum().item()

    def state(self) -> dict[str, Tensor]:
        """Return the global model; where nothing is averaged, that of the last client."""
        state = self._global if self._averages else self._model.state_dict()
        return {name: tensor.cpu() for name, tensor in state.items()}


def write_job(path: Path, work: Workload, data: Any, rounds: int) -> None:
    """Write a workload and its cohorts for :class:`Peer`."""
    model, sampling = work.model(), sampling_of(work, data)
    model.load_state_dict(initial_state(work))
    job = {
        "model": model,
        "clients": [data.train_samples(i) for i in range(data.num_partitions)],
        "cohorts": [sorted(sampling(server_round)) for server_round in range(1, rounds + 1)],
        "lr": work.lr,
        "epochs": work.local.epochs or 1,
        "batch_size": work.local.batch_size,
    }
    torch.save(job, path)


class Peer:
    """Rounds of another framework, which draws our cohorts and batches, in a process of its environment.

    Parameters
    ----------
    name : str
        Of ``workloads.PEERS``.
    job : Path
        What :func:`write_job` has written.
    cores : int
        How many it may use.
    """

    def __init__(self, name: str, job: Path, cores: int) -> None:
        self._name, self._state = name, job.with_name(f"{name}-{cores}.pt")
        self._log = job.with_name(f"{name}-{cores}.log")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cores}"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    str(environment.PYTHON),
                    *(launcher if name == "pfl" and cores > 1 else ()),
                    *("-m", f"scripts.benchmark.{name}_peer", str(job), str(cores)),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._process.communicate(timeout=10)  # which closes its input: then it ends
        _end(self._process.pid)
        self._process.wait()

    def round(self, server_round: int) -> None:
        """Have it run a round."""
        self._ask(str(server_round))

    def state(self) -> dict[str, Tensor]:
        """Return the global model."""
        self._ask(str(self._state))
        state: dict[str, Tensor] = torch.load(self._state)
        return state

    def _ask(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():  # type: ignore[union-attr]
            raise RuntimeError(f"{self._name} ended:\n{self._log.read_text()[:4000]}")


def loss(work: Workload, data: Any, state: dict[str, Tensor]) -> float:
    """Return a model's mean loss on training samples of the first clients, up to 2,000 samples."""
    xs, ys, num_samples = [], [], 0
    for i in range(data.num_partitions):
        x, y = data.train_samples(i)
        xs, ys, num_samples = [*xs, x], [*ys, y], num_samples + len(y)
        if num_samples >= 2000:
            break
    model = work.model().eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        return F.cross_entropy(model(torch.cat(xs)[:2000]), torch.cat(ys)[:2000]).item()


def run_python(*arguments: str, timeout: float = 900) -> Any:
    """Run a module of this benchmark in a fresh process, with its children, and return what it reports.

    Whatever it leaves running is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
        }
        with Path(folder, "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--out", str(out)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            finally:
                _end(process.pid)
            if code or not out.exists():
                log.seek(0)
                raise RuntimeError(f"{' '.join(arguments)} ended with exit code {code}:\n{log.read()[-4000:]}")
        return json.loads(out.read_text())


def _end(group: int) -> None:
    """End what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def flower(name: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of each of Flower's rounds, its start-up, and the loss of its last model."""
    figures: dict[str, Any] = run_python("scripts.benchmark.flower_peer", name, "--rounds", str(rounds))
    return figures
