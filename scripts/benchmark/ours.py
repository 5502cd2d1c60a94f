"""Our side: a round of the round loop on a hardware option; and local training alone."""

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedresearch.config.schema import Checkpoint
from fedresearch.experiment.checkpoints import Checkpoints
from fedresearch.experiment.model import fastest_memory_format
from fedresearch.federation.availability import ALWAYS
from fedresearch.federation.client_app import Clients
from fedresearch.federation.generators import restored_generators
from fedresearch.federation.hooks import Hooks
from fedresearch.federation.rounds import RoundLoop
from fedresearch.federation.row_sums import compile_in
from fedresearch.federation.sampling import Sampling, uniform
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.hardware.threads import be_deterministic, restored_settings
from fedresearch.local.forward import compute_in_bfloat16
from fedresearch.local.metrics import accuracy
from fedresearch.local.state_names import parameters
from fedresearch.local.train import LocalTrainer, Task, Trained
from fedresearch.local.update import End, LocalUpdate
from fedresearch.runs.directory import History, RunDirectory
from fedresearch.seeding import Seeds
from scripts.benchmark.workloads import Workload, initial_state

ROOT = Path(__file__).parents[2]
# Where files are written that must be on a disk, as /tmp may not be; git ignores what a killed benchmark leaves there.
OUTPUTS = ROOT / "outputs"
_CACHE = "~/.cache/fedresearch"
# Module, class and arguments: the module of a hardware option that is not timed is not imported.
_GRIDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cpu": ("in_process", "InProcessGrid", {}),
    "workers": ("workers", "WorkerGrid", {"workers": "auto"}),
    "batched": ("batched", "BatchedGrid", {"chunk": "auto", "compile": "auto", "cache_dir": _CACHE}),
    "batched-uncompiled": ("batched", "BatchedGrid", {"chunk": "auto", "compile": False, "cache_dir": _CACHE}),
    "gpu": ("in_process", "InProcessGrid", {}),
    "batched-gpu": ("batched", "BatchedGrid", {"chunk": "auto", "compile": "auto", "cache_dir": _CACHE}),
    "batched-gpu-uncompiled": ("batched", "BatchedGrid", {"chunk": "auto", "compile": False, "cache_dir": _CACHE}),
}
# With a checkpoint after every round, as ``checkpoint.every=1`` writes it.
_CHECKPOINTED = "-checkpointed"
# Without the clients' table, as with ``clients_table=false``.
_UNTABLED = "-untabled"
# With ``precision=bf16`` or ``precision=tf32``.
_BF16, _TF32 = "-bf16", "-tf32"
_VARIANTS = (_CHECKPOINTED, _UNTABLED, _BF16, _TF32)
HARDWARE = (
    *_GRIDS,
    *(f"{name}{variant}" for variant in _VARIANTS for name in _GRIDS if variant != _TF32 or "gpu" in name),
)


def on_gpu(hardware: str) -> bool:
    """Return whether a hardware option trains on a GPU."""
    return "gpu" in _option(hardware)


def _option(hardware: str) -> str:
    """Return the option of which this is a variant."""
    return functools.reduce(str.removesuffix, _VARIANTS, hardware)


def is_rounded(hardware: str) -> bool:
    """Return whether a hardware option computes less exactly than in float32."""
    return hardware.endswith((_BF16, _TF32))


class NullClients(Clients):
    """Clients that return their parameters plus 0.001, at the same cost as others in all that is not training."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._parts, self._local = parts, _add  # type: ignore[assignment]

    def _run(self, trainer: Any, tasks: Sequence[Task]) -> Iterator[Trained]:
        return map(_add, tasks)

    def __reduce__(self) -> tuple[Callable[[], Clients], tuple[()]]:
        return functools.partial(NullClients, **self._parts), ()


def _add(task: Task) -> Trained:
    return Trained({name: tensor + 1e-3 for name, tensor in task.start.items()}, 0.0, 1, End(), {})


def sampling_of(work: Workload, data: Any) -> Sampling:
    """Return who trains in which round, for the bare loop too."""
    return Sampling(uniform, [len(rows) for rows in data.train], work.cohort, 0, "train-sampling")


def _laid_out(work: Workload, data: Any, device: torch.device) -> tuple[nn.Module, Any]:
    """Return a workload's initial model and its data on a device, as an experiment lays them out."""
    model = work.model().to(device)
    model.load_state_dict(initial_state(work))
    memory_format = fastest_memory_format(model, device)
    if memory_format == torch.channels_last or device.type != "cpu":
        data = data.to(device, memory_format)
    return model.to(memory_format=memory_format), data


class Ours:
    """Rounds on a hardware option, one at a time; open while it is a context."""

    def __init__(self, work: Workload, data: Any, hardware: str, gpu: str = "cuda") -> None:
        self._deterministic = on_gpu(hardware)  # as an experiment is there
        if self._deterministic:
            be_deterministic()
        self._model, data = _laid_out(work, data, torch.device(gpu if self._deterministic else "cpu"))
        self._tf32 = hardware.endswith(_TF32)
        if hardware.endswith(_BF16):
            compute_in_bfloat16(self._model)
        self._app = (NullClients if work.null else Clients)(
            model=self._model,
            data=data,
            update=LocalUpdate(),
            personal=frozenset(),
            optimizer=work.optimizer,
            work=work.local,
            availability=ALWAYS,
            keep_optimizer_state=False,
            metrics={"accuracy": accuracy},
            seed=0,
        )
        compile_in(_CACHE)
        num_clients = data.num_partitions
        self._strategy = FedAvg()
        self._open = ExitStack()
        folder = self._open.enter_context(TemporaryDirectory(dir=OUTPUTS))
        self._run = RunDirectory(Path(folder), {}, History())
        self._loop = RoundLoop(
            hooks=Hooks(self._strategy, seed=0),
            num_rounds=0,
            train_cohort=sampling_of(work, data),
            evaluate_cohort=lambda _: range(num_clients),
            num_available=lambda _: num_clients,
            target_accuracy=None,
            evaluate_initial=False,
            evaluate_every=1 if work.evaluates else 10**9,
            parameters=parameters(self._model),
            shortage=lambda _: "",
            client_config=lambda _: {"lr": work.lr},
            evaluate=lambda _: {},
            metrics={"accuracy": "up"},
            weighted_by="num-examples",
            log=lambda *_: None,
            max_failures=0,
            nonfinite="stop",
            log_clients=None if hardware.endswith(_UNTABLED) else self._run.log_clients,
            log_failure=lambda *_: None,
        )
        module, name, options = _GRIDS[_option(hardware)]
        make = getattr(importlib.import_module(f"fedresearch.hardware.{module}"), name)
        self._grid: OrderedGrid = make(self._app, num_clients, **options)
        self._arrays = ArrayRecord(initial_state(work))
        self._checkpoints = self._write_checkpoints() if hardware.endswith(_CHECKPOINTED) else None

    def __enter__(self) -> Self:
        self._open.enter_context(restored_generators())  # as around the rounds of a run
        self._open.enter_context(self._grid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def round(self, server_round: int) -> None:
        """Run a round."""
        torch.set_num_threads(1)
        if torch.are_deterministic_algorithms_enabled() != self._deterministic:  # a run sets it once
            torch.use_deterministic_algorithms(self._deterministic, warn_only=True)
        with restored_settings() if self._tf32 else nullcontext():  # the other sides take turns in this process
            if self._tf32:
                be_deterministic(tf32=True)
            row, self._arrays = self._loop._round(server_round, self._grid, self._arrays)
        if self._checkpoints:
            self._run.log(row | {"time/total_s": 0.0})
            self._checkpoints.after(row, self._arrays, is_best=False)

    def _write_checkpoints(self) -> Checkpoints:
        federation = SimpleNamespace(num_rounds=0, evaluate_every=1)
        config = SimpleNamespace(checkpoint=Checkpoint(1, 2, None), federation=federation)
        experiment = SimpleNamespace(config=config, strategy=self._strategy, grid=self._grid)
        return Checkpoints(experiment, self._run)  # type: ignore[arg-type]

    def state(self) -> dict[str, Tensor]:
        """Return the global model."""
        return dict(self._arrays.to_torch_state_dict())


class OursLocal:
    """The local training of a round's cohort, from the initial weights; no messages and no average."""

    def __init__(self, work: Workload, data: Any) -> None:
        self._work, self._sampling = work, sampling_of(work, data)
        (self._model, self._data), self._initial = _laid_out(work, data, torch.device("cpu")), initial_state(work)
        self._stages = LocalUpdate().stages(self._model)
        self._train = LocalTrainer(self._model, work.optimizer, work.local)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def round(self, server_round: int) -> None:
        """Train the cohort."""
        torch.set_num_threads(1)
        for i in sorted(self._sampling(server_round)):
            x, y = self._data.train_samples(i)
            seeds = Seeds(0, server_round, i)
            task = Task(self._initial, x, y, LocalUpdate(), self._stages, {"lr": self._work.lr}, seeds)
            self._train(task)

    def state(self) -> dict[str, Tensor]:
        """Return the model of the last client."""
        return dict(self._model.state_dict())
