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
from fedresearch.local.steps import Batches, Steps
from fedresearch.local.train import LocalWork, MakeOptimizer, Task, Trained, drift, starting
from fedresearch.local.update import Tensors

log = logging.getLogger("fedresearch")

# Bytes of a chunk's parameters, gradients and optimizer state that stay in a core's cache.
_CACHE_BYTES = 2_500_000
_COPIES = 4
_LARGEST_CHUNK = 64


class StackedTrainer:
    """Trains tasks in chunks of a fixed number of clients, the longest first.

    Shapes are fixed, so that a client's result does not depend on the other clients of its chunk: short batches and
    short chunks are padded, and the padding is masked. A client stays unchanged after its last step while the rest of
    its chunk continues.

    The optimizer is the clients', on the stacked parameters; it must work element by element, as SGD, Adam, AdamW and
    Adagrad do.

    Parameters
    ----------
    chunk : int or None
        Clients in one call; None: as many as fit a core's cache, at most the number of tasks.
    compile : bool
        Whether to compile the step. The first round then takes some seconds longer; the code is cached on disk.
    largest : int
        Number of samples of the largest client: the size of a full batch.
    """

    def __init__(self, chunk: int | None, compile: bool, largest: int) -> None:
        self._chunk, self._compiles, self._largest = chunk, compile, largest
        self._steps: dict[Any, Steps] = {}

    def __call__(
        self, tasks: Sequence[Task], model: Module, *, optimizer: MakeOptimizer, work: LocalWork
    ) -> list[Trained]:
        """Train all tasks, which must share their update, stages and config.

        Raises
        ------
        ValueError
            If a task has an optimizer state, or if the optimizer's state contains values that are not tensors.
        RuntimeError
            If the model cannot be batched.
        """
        model.train()
        forward = Forward(model)
        num_bytes = sum(tensor.nbytes for tensor in forward.params.values())
        fitting = max(1, min(_LARGEST_CHUNK, _CACHE_BYTES // (_COPIES * num_bytes), len(tasks)))
        chunk = self._chunk or fitting
        # In an order that does not depend on the order of the messages.
        order = sorted(range(len(tasks)), key=lambda i: (-len(tasks[i].y), tasks[i].batches_seed))
        x, y, starts = _pool(tasks)
        results: dict[int, Trained] = {}
        for first in range(0, len(order), chunk):
            members = order[first : first + chunk]
            pool = x, y, [starts[i] for i in members]
            trained = self._train([tasks[i] for i in members], pool, chunk, forward, model, optimizer, work)
            results |= dict(zip(members, trained, strict=True))
        return [results[i] for i in range(len(tasks))]

    def _train(
        self,
        tasks: Sequence[Task],
        pool: tuple[Tensor, Tensor, Sequence[int]],
        chunk: int,
        forward: Forward,
        model: Module,
        optimizer: MakeOptimizer,
        work: LocalWork,
    ) -> list[Trained]:
        first = tasks[0]
        if first.optimizer_state is not None:
            raise ValueError("optimizers start anew in every round here; try local.keep_optimizer_state=false")
        make_optimizer = functools.partial(optimizer, lr=first.config["lr"])
        params = {name: _stack([task.start[name] for task in tasks], chunk) for name in forward.params}
        dtype = next(iter(params.values())).dtype
        fixed = [first.update.begin(starting(task, model, params)) for task in tasks]
        leaves, axes, spec = _columns(fixed, chunk, next(iter(params.values())))
        x, y, starts = pool
        lr = torch.tensor(first.config["lr"], dtype=dtype, device=x.device)
        total = torch.zeros(chunk, dtype=torch.float64, device=x.device)
        works = {
            number: work.for_stage(stage) for number, stage in enumerate(first.stages) if stage.trained & params.keys()
        }
        batches, lengths = _draw(tasks, starts, chunk, list(works.values()), self._largest)
        for number, drawn in zip(works, batches, strict=True):
            names = [name for name in params if name in first.stages[number].trained]
            others = {name: tensor for name, tensor in params.items() if name not in names}
            key = (number, first.update, chunk, drawn[0].shape[2], x.shape, *axes)
            if key not in self._steps:
                self._steps[key] = Steps(first.update, first.inputs, forward, make_optimizer, spec, axes, self._compile)
            trained = {name: params[name] for name in names}
            batch = tree_map(lambda tensor: tensor.to(x.device), drawn)
            moved, total = self._steps[key](trained, total, batch, (others, leaves, lr, x, y))
            params |= moved
        num_steps = [sum(each) for each in zip(*lengths, strict=True)]
        if not num_steps:
            raise ValueError("no parameter is trained: all are frozen")
        rows = zip(*(tensor.unbind() for tensor in params.values()), strict=True)
        drift_of = functools.cache(functools.partial(drift, make_optimizer))
        results = []
        for task, own, held, loss, num in zip(tasks, rows, fixed, total.tolist(), num_steps, strict=False):
            trained = dict(zip(params, own, strict=True))
            end = task.update.end(trained, held, functools.partial(drift_of, num))
            results.append(Trained({**task.start, **trained}, loss / num, num, end, {}))
        return results

    def _compile(self, function: Code, arguments: Sequence[Tensor]) -> Code:
        if self._compiles:
            try:
                return compile_code(function, arguments)
            except Exception as error:  # of a dozen types; an error of the model occurs again in the uncompiled step
                self._compiles = False
                reason = str(error).strip().split("\n")[0]
                log.warning("the step could not be compiled and runs uncompiled: %s", reason)
        return function


def _stack(tensors: Sequence[Tensor], chunk: int) -> Tensor:
    return torch.stack([*tensors, *[tensors[-1]] * (chunk - len(tensors))])


def _columns(fixed: Sequence[Any], chunk: int, like: Tensor) -> tuple[list[Tensor], list[int | None], TreeSpec]:
    """Return the leaves of the clients' fixed values, their axes (None: shared by all, 0: stacked) and their structure.

    Numbers become tensors.
    """
    flat, (spec, *_) = zip(*map(tree_flatten, fixed), strict=True)
    leaves: list[Tensor] = []
    axes: list[int | None] = []
    for own in zip(*flat, strict=True):
        is_shared = all(leaf is own[0] or (not torch.is_tensor(leaf) and leaf == own[0]) for leaf in own)
        tensors = [
            leaf if torch.is_tensor(leaf) else torch.tensor(leaf, dtype=like.dtype, device=like.device)
            for leaf in (own[:1] if is_shared else own)
        ]
        leaves.append(tensors[0] if is_shared else _stack(tensors, chunk))
        axes.append(None if is_shared else 0)
    return leaves, axes, spec


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
    tasks: Sequence[Task], starts: Sequence[int], chunk: int, works: Sequence[LocalWork], largest: int
) -> tuple[list[Batches], list[list[int]]]:
    """Return the batches of each stage's steps, and the clients' numbers of steps.

    Short batches and finished clients are padded with ``~start``: negative, and the complement of the client's first
    index.
    """
    orders, numbers = Generator(), Generator()
    rows: list[list[NDArray[np.int64]]] = [[] for _ in works]
    drawn: list[list[list[Tensors]]] = [[] for _ in works]
    for task, start in zip(tasks, starts, strict=True):
        orders.manual_seed(task.batches_seed)
        numbers.manual_seed(task.transforms_seed)
        for stage, work in enumerate(works):
            width = work.batch_size or largest
            epochs = [*work.orders(len(task.y), orders, task.share)]
            rows[stage].append(_rows(epochs, len(task.y), start, width))
            drawn[stage].append(_numbers(task, epochs, numbers, width))
    batches, lengths = [], []
    for of_clients, of_samples in zip(rows, drawn, strict=True):
        lengths.append([len(own) for own in of_clients])
        nothing = np.full(chunk, ~starts[-1])
        nothing[: len(tasks)] = np.invert(starts)
        index = np.repeat(nothing[None, :, None], max(lengths[-1]), axis=0).repeat(of_clients[0].shape[1], axis=2)
        for member, own in enumerate(of_clients):
            index[: len(own), member] = own
        batches.append((torch.from_numpy(index), _pad_clients(of_samples, max(lengths[-1]), chunk)))
    return batches, lengths


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


def _pad_clients(drawn: Sequence[list[Tensors]], num_steps: int, chunk: int) -> list[Tensors]:
    """Return clients' random numbers as tensors ``(num_steps, chunk, width, ...)``, each step's of the same strides."""
    pad = functools.partial(_pad, length=num_steps)
    return tree_map(
        lambda *tensors: _pad(torch.stack([*map(pad, tensors)]), chunk).transpose(0, 1).contiguous(), *drawn
    )


def _pad(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])
