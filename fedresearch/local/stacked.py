"""Training of many clients with stacked parameters: the same ``LocalUpdate`` under ``torch.func.vmap``."""

import functools
import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import Module
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map

from fedresearch.local.compiled import Code, compile_code
from fedresearch.local.forward import Forward
from fedresearch.local.lanes import Column, Lanes
from fedresearch.local.replayed import Replayed
from fedresearch.local.state_names import first_names
from fedresearch.local.steps import Batch, Steps
from fedresearch.local.train import LocalWork, MakeOptimizer, Task, Trained, drift, starting
from fedresearch.local.update import Tensors

log = logging.getLogger("fedresearch")

# Bytes of a chunk's parameters, gradients and optimizer state that stay in a core's cache.
_CACHE_BYTES = 2_500_000
_COPIES = 4
_LARGEST_CHUNK = 64
# The same on a GPU: a share of its memory, in which the samples' intermediate results have their place too.
_GPU_SHARE = 0.2
_GPU_COPIES = 8
_LARGEST_GPU_CHUNK = 1024


class StackedTrainer:
    """Trains tasks in a fixed number of lanes: when a client ends, the next one begins in its lane.

    Shapes are fixed, so that a client's result depends neither on the other clients nor on its lane: short batches are
    padded, and the padding is masked. Each stage has lanes of its own.

    The optimizer is the clients', on one client's parameters; it steps under ``torch.func.vmap``, as SGD, Adam, AdamW
    and Adagrad can.

    Parameters
    ----------
    chunk : int or None
        Number of lanes; None: as many as fit a core's cache, or a GPU's memory, at most the number of tasks.
    compile : bool
        Whether to compile the step. The first round then takes some seconds longer; the code is cached on disk.
    largest : int
        Number of samples of the largest client: the size of a full batch.
    """

    def __init__(self, chunk: int | None, compile: bool, largest: int) -> None:
        self._chunk, self._compiles, self._largest = chunk, compile, largest
        self._steps: dict[Any, Steps] = {}

    def num_lanes(self, model: Module, num_tasks: int) -> int:
        """Return the number of lanes for so many tasks."""
        params = [*model.parameters()]
        num_bytes = sum(tensor.nbytes for tensor in params)
        return self._chunk or max(1, min(_fitting(num_bytes, params[0].device), num_tasks))

    def __call__(
        self,
        tasks: Sequence[Task],
        model: Module,
        *,
        optimizer: MakeOptimizer,
        work: LocalWork,
        num_lanes: int | None = None,
    ) -> list[Trained]:
        """Train all tasks, which must share their update, stages and config.

        If these are some of a round's tasks, ``num_lanes`` is the number for all of them.

        Raises
        ------
        ValueError
            If a task has an optimizer state, if the optimizer's state contains values that are not tensors, or if no
            stage trains a parameter.
        RuntimeError
            If the model cannot be batched.
        """
        first, num_tasks = tasks[0], len(tasks)
        if first.optimizer_state is not None:
            raise ValueError("optimizers start anew in every round here; try local.keep_optimizer_state=false")
        model.train()
        forward = Forward(model)
        names, like = [*forward.params], next(iter(forward.params.values()))
        num_lanes = num_lanes or self.num_lanes(model, num_tasks)
        make_optimizer = functools.partial(optimizer, lr=first.config["lr"])
        fixed = [first.update.begin(starting(task, model, names)) for task in tasks]
        leaves, spec = _leaves(fixed, like)
        params = {name: Column([task.start[name] for task in tasks], like) for name in names}
        x, y, starts = _pool(tasks)
        shared = torch.tensor(first.config["lr"], dtype=like.dtype, device=x.device), x, y
        stages = [stage for stage in first.stages if stage.trained & params.keys()]
        if not stages:
            raise ValueError("no parameter is trained: all are frozen")
        after: dict[str, Sequence[Tensor]] = {name: [task.start[name] for task in tasks] for name in names}
        losses, num_steps = torch.zeros(num_tasks, dtype=torch.float64), [0] * num_tasks
        drawn = _draw(tasks, starts, [work.for_stage(stage) for stage in stages], self._largest)
        for stage, (rows, numbers) in zip(stages, drawn, strict=True):
            lanes = Lanes([len(own) for own in rows], num_lanes, x.device)
            batches = tree_map(functools.partial(_copy_to, x.device), _in_lanes(lanes, starts, rows, numbers))
            trained = [name for name in names if name in stage.trained]
            axes = [params[name].axis for name in names if name not in trained] + [leaf.axis for leaf in leaves]
            key = (*trained, first.update, num_lanes, rows[0].shape[1], x.shape, *axes)
            if key not in self._steps:
                self._steps[key] = Steps(
                    first.update, first.inputs, forward, make_optimizer, trained, spec, self._compile
                )
            moved, total = self._steps[key](params, leaves, lanes, batches, shared)
            after |= {name: tensor.unbind() for name, tensor in moved.items()}
            params |= {name: Column(after[name], like) for name in moved}
            losses += total.cpu()
            num_steps = [num + len(own) for num, own in zip(num_steps, rows, strict=True)]
        drift_of = functools.cache(functools.partial(drift, make_optimizer))
        shared_by = first_names(model)
        results = []
        values = zip(*after.values(), strict=True)
        for task, own, held, loss, num in zip(tasks, values, fixed, losses.tolist(), num_steps, strict=True):
            trained_own = dict(zip(names, own, strict=True))
            end = task.update.end(trained_own, held, functools.partial(drift_of, num))
            state = {**task.start, **{name: trained_own[first] for name, first in shared_by.items()}}
            results.append(Trained(state, loss / num, num, end, {}))
        return results

    def _compile(self, function: Code, arguments: Sequence[Tensor]) -> Code:
        code = self._compiled(function, arguments)
        return Replayed(code) if arguments[-1].is_cuda else code

    def _compiled(self, function: Code, arguments: Sequence[Tensor]) -> Code:
        if self._compiles:
            try:
                return compile_code(function, arguments)
            except Exception as error:  # of a dozen types; an error of the model occurs again in the uncompiled step
                self._compiles = False
                reason = str(error).strip().split("\n")[0]
                log.warning("the step could not be compiled and runs uncompiled: %s", reason)
        return function


def _fitting(num_bytes: int, device: torch.device) -> int:
    """Return how many clients with parameters of a number of bytes to train in one call.

    On a GPU, it does not depend on what else occupies its memory, for other chunks give other bits.
    """
    if device.type != "cuda":
        return min(_LARGEST_CHUNK, _CACHE_BYTES // (_COPIES * num_bytes))
    available = _GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return min(_LARGEST_GPU_CHUNK, int(available) // (_GPU_COPIES * num_bytes))


def _copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _leaves(fixed: Sequence[Any], like: Tensor) -> tuple[list[Column], TreeSpec]:
    """Return the leaves of the clients' fixed values, and their structure."""
    flat, (spec, *_) = zip(*map(tree_flatten, fixed), strict=True)
    return [Column(own, like) for own in zip(*flat, strict=True)], spec


def _pool(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, list[int]]:
    """Return all tasks' samples in two arrays, and the index of each task's first sample.

    If the samples are views of two arrays, as those of ``FederatedData``, these are returned without a copy. Otherwise
    the samples are copied into arrays whose length is a power of two, so that few shapes are compiled over the rounds.
    """
    whole = []
    for parts in ([task.x for task in tasks], [task.y for task in tasks]):
        base = parts[0]._base
        if base is None or any(part._base is not base or part.stride() != base.stride() for part in parts):
            break
        offsets = [int(part.storage_offset() - base.storage_offset()) // base.stride(0) for part in parts]
        whole.append((base, offsets))
    if len(whole) == 2 and whole[0][1] == whole[1][1]:
        return whole[0][0], whole[1][0], whole[0][1]
    *starts, length = accumulate([len(task.y) for task in tasks], initial=0)
    padding = (1 << (length - 1).bit_length()) - length
    first = tasks[0]
    x = torch.cat([*(task.x for task in tasks), first.x.new_zeros(padding, *first.x.shape[1:])])
    y = torch.cat([*(task.y for task in tasks), first.y.new_zeros(padding, *first.y.shape[1:])])
    return x, y, starts


def _draw(
    tasks: Sequence[Task], starts: Sequence[int], works: Sequence[LocalWork], largest: int
) -> list[tuple[list[NDArray[np.int64]], list[list[Tensors]]]]:
    """Return for each stage the clients' batches and their transforms' random numbers."""
    orders, numbers = Generator(), Generator()
    drawn: list[tuple[list[NDArray[np.int64]], list[list[Tensors]]]] = [([], []) for _ in works]
    for task, start in zip(tasks, starts, strict=True):
        orders.manual_seed(task.seed_of("batches"))
        if task.inputs.transforms:
            numbers.manual_seed(task.seed_of("transforms"))
        for work, (of_clients, of_samples) in zip(works, drawn, strict=True):
            width = work.batch_size or largest
            epochs = [*work.orders(len(task.y), orders, task.share)]
            of_clients.append(_rows(epochs, len(task.y), start, width))
            of_samples.append(_numbers(task, epochs, numbers, width))
    return drawn


def _in_lanes(
    lanes: Lanes, starts: Sequence[int], rows: Sequence[NDArray[np.int64]], numbers: Sequence[list[Tensors]]
) -> Batch:
    """Return each step's batches in lanes. A lane without a client has a padding row."""
    index = np.full((lanes.num_steps, lanes.num_lanes, rows[0].shape[1]), ~starts[0])
    is_first = np.zeros(index.shape[:2], dtype=bool)
    places = [(slice(first, first + len(own)), lane) for (first, lane), own in zip(lanes.places, rows, strict=True)]
    for (steps, lane), own in zip(places, rows, strict=True):
        index[steps, lane] = own
        is_first[steps.start, lane] = True

    def placed(*of_clients: Tensor) -> Tensor:
        tensor = of_clients[0].new_zeros((*is_first.shape, *of_clients[0].shape[1:]))
        for place, own in zip(places, of_clients, strict=True):
            tensor[place] = own
        return tensor

    return torch.from_numpy(index), torch.from_numpy(is_first), tree_map(placed, *numbers)


def _rows(epochs: Sequence[Tensor | slice], num_examples: int, start: int, width: int) -> NDArray[np.int64]:
    """Return a client's batches as indices ``(steps, width)``."""
    own = np.arange(start, start + num_examples)
    found = []
    for order in epochs:
        samples = own[order if isinstance(order, slice) else order.numpy()]
        padded = np.full(-(-len(samples) // width) * width, ~start)
        padded[: len(samples)] = samples
        found.append(padded)
    return np.concatenate(found).reshape(-1, width)


def _numbers(task: Task, epochs: Sequence[Tensor | slice], generator: Generator, width: int) -> list[Tensors]:
    """Return each transform's random numbers for a client's batches, ``(steps, width, ...)``; short ones are padded."""
    if not task.inputs.transforms:
        return []
    drawn = []
    for order in epochs:
        num_samples = len(task.y) if isinstance(order, slice) else len(order)
        of_epoch = task.inputs.draw((num_samples, *task.x.shape[1:]), width, generator)
        drawn.append(tree_map(functools.partial(_pad, length=-(-num_samples // width) * width), of_epoch))
    return tree_map(lambda *tensors: torch.cat(tensors).unflatten(0, (-1, width)), *drawn)


def _pad(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])
