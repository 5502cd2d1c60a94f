"""A cohort's training, many clients' steps in one call: the same ``LocalUpdate`` under ``torch.func.vmap``."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import grad_and_value, vmap
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fedresearch.local.forward import Forward
from fedresearch.local.train import MakeOptimizer, Schedule, Task, Trained, drift, mean_gradient
from fedresearch.local.update import LocalUpdate, Start, Tensors

log = logging.getLogger("fedresearch")

# Bytes that a chunk's parameters, gradients and what goes with them may take, to stay in a core's cache.
_CACHE_BYTES = 2_500_000
_COPIES = 4
_LARGEST_CHUNK = 64

Gradients = Callable[..., tuple[Tensors, Tensor]]


class CohortTrainer:
    """Trains tasks in chunks of a fixed number of clients, longest first.

    Shapes are fixed, so that a client's result does not depend on who else is in its chunk: short batches and short
    chunks are padded, and what is padded is masked. A client's parameters are read off after its last step.

    The optimizer is the client's own, on the stacked parameters; it must work element by element, as SGD, Adam, AdamW
    and Adagrad do.

    Parameters
    ----------
    chunk : int or None
        Clients a call; None: as many as fit a core's cache, but no more than the tasks are.
    compile : bool
        Whether to compile the step. The first round then takes up to a minute longer; the code is kept on disk.
    largest : int
        Samples of the largest client: the size of a full batch.
    """

    def __init__(self, chunk: int | None, compile: bool, largest: int) -> None:
        self._chunk, self._compiles, self._largest = chunk, compile, largest
        self._compiled: dict[Any, Gradients] = {}

    def __call__(
        self, tasks: Sequence[Task], model: Module, *, optimizer: MakeOptimizer, schedule: Schedule
    ) -> list[Trained]:
        """Train all tasks, whose updates, stages and numbers from the server are the same.

        Raises
        ------
        ValueError
            If an optimizer is to go on from its last round.
        RuntimeError
            If the model cannot be batched.
        """
        model.train()
        forward = Forward(model)
        num_bytes = sum(tensor.nbytes for tensor in forward.params.values())
        fitting = max(1, min(_LARGEST_CHUNK, _CACHE_BYTES // (_COPIES * num_bytes), len(tasks)))
        chunk = self._chunk or fitting
        # In an order that the messages' does not touch.
        order = sorted(range(len(tasks)), key=lambda i: (-len(tasks[i].y), tasks[i].batches_seed))
        results: dict[int, Trained] = {}
        for first in range(0, len(order), chunk):
            members = order[first : first + chunk]
            trained = self._train([tasks[i] for i in members], chunk, forward, model, optimizer, schedule)
            results |= dict(zip(members, trained, strict=True))
        return [results[i] for i in range(len(tasks))]

    def _train(
        self,
        tasks: Sequence[Task],
        chunk: int,
        forward: Forward,
        model: Module,
        optimizer: MakeOptimizer,
        schedule: Schedule,
    ) -> list[Trained]:
        first = tasks[0]
        if first.optimizer_state is not None:
            raise ValueError("optimizers start afresh in every round here; try local.keep_optimizer_state=false")
        make_optimizer = functools.partial(optimizer, lr=first.config["lr"])
        params = {name: self._stack([task.start[name] for task in tasks], chunk) for name in forward.params}
        fixed = [first.update.begin(_start(task, model, params)) for task in tasks]
        leaves, spec = _leaves(fixed, next(iter(params.values())).dtype)
        is_shared = [all(leaf is column[0] for leaf in column) for column in leaves]
        stacked = [
            column[0] if shared else self._stack(column, chunk)
            for column, shared in zip(leaves, is_shared, strict=True)
        ]
        axes = [None if shared else 0 for shared in is_shared]

        x, y = torch.cat([task.x for task in tasks]), torch.cat([task.y for task in tasks])
        sizes = torch.tensor([len(task.y) for task in tasks])
        starts = (sizes.cumsum(0) - sizes).tolist()
        generators = [Generator().manual_seed(task.batches_seed) for task in tasks]
        total = torch.zeros(chunk, dtype=torch.float64)
        num_steps = [0] * len(tasks)
        for number, stage in enumerate(first.stages):
            names = [name for name in params if name in stage.trained]
            if not names:
                continue
            length = schedule.of(stage)
            rows = [
                _rows(length, len(task.y), start, generator, length.batch_size or self._largest)
                for task, start, generator in zip(tasks, starts, generators, strict=True)
            ]
            lengths = [len(row) for row in rows]
            # (steps, chunk, batch); what is not there is -1.
            index = pad_sequence([*rows, *[rows[0][:0]] * (chunk - len(rows))], padding_value=-1)
            masks, index = (
                (index >= 0).to(total.dtype if x.dtype == torch.float64 else torch.float32),
                index.clamp(min=0),
            )
            gradients = self._gradients((number, *axes), first.update, forward, spec, axes)
            trained = {name: params[name] for name in names}
            others = {name: tensor for name, tensor in params.items() if name not in trained}
            stepper = make_optimizer(list(trained.values()))
            finished: dict[int, Tensors] = {}
            ending: dict[int, list[int]] = {}
            for member, num in enumerate(lengths):
                ending.setdefault(num, []).append(member)
            for step, (at, mask) in enumerate(zip(index, masks, strict=True), start=1):
                with torch.no_grad():
                    corrected, losses = gradients(trained, others, x[at], y[at], mask, stacked)
                for name, gradient in corrected.items():
                    trained[name].grad = gradient
                stepper.step()
                total += losses
                for member in ending.get(step, ()):
                    finished[member] = {name: tensor[member].clone() for name, tensor in trained.items()}
            for name in names:
                params[name] = self._stack([finished[member][name] for member in range(len(tasks))], chunk)
            num_steps = [done + steps for done, steps in zip(num_steps, lengths, strict=True)]
        if not all(num_steps):
            raise ValueError("no parameter is trained: all are frozen")
        results = []
        for member, task in enumerate(tasks):
            own = {name: tensor[member] for name, tensor in params.items()}
            end = task.update.end(own, fixed[member], functools.partial(drift, make_optimizer, num_steps[member]))
            loss = total[member].item() / num_steps[member]
            results.append(Trained({**task.start, **own}, loss, num_steps[member], end.sent, end.kept, {}))
        return results

    @staticmethod
    def _stack(tensors: Sequence[Tensor], chunk: int) -> Tensor:
        return torch.stack([*tensors, *[tensors[-1]] * (chunk - len(tensors))])

    def _gradients(
        self, key: Any, update: LocalUpdate, forward: Forward, spec: TreeSpec, axes: list[int | None]
    ) -> Gradients:
        """Return a chunk's corrected gradients and losses as a function of its tensors."""

        def one(
            trained: Tensors, others: Tensors, x: Tensor, y: Tensor, mask: Tensor, leaves: list[Tensor]
        ) -> tuple[Tensors, Tensor]:
            fixed = tree_unflatten(leaves, spec)

            def objective(trained: Tensors) -> Tensor:
                losses = update.objective(forward, {**others, **trained}, x, y, fixed)
                return torch.where(mask > 0, losses, 0.0).sum() / mask.sum().clamp(min=1.0)

            gradients, loss = grad_and_value(objective)(trained)
            return update.correct(gradients, trained, fixed), loss

        def gradients(*arguments: Any) -> tuple[Tensors, Tensor]:
            return vmap(one, in_dims=(0, 0, 0, 0, 0, axes))(*arguments)

        if not self._compiles:
            return gradients
        if key not in self._compiled:
            self._compiled[key] = self._or_eager(gradients)
        return self._compiled[key]

    def _or_eager(self, gradients: Gradients) -> Gradients:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is no news
        compiled = torch.compile(gradients, dynamic=False)

        def call(*arguments: Any) -> tuple[Tensors, Tensor]:
            if self._compiles:
                try:
                    return compiled(*arguments)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self._compiles = False
                    reason = str(error).strip().split("\n")[0]
                    log.warning("the step could not be compiled and runs uncompiled: %s", reason)
            return gradients(*arguments)

        return call


def _start(task: Task, model: Module, params: Tensors) -> Start:
    anchor = {name: (task.anchor or task.start)[name] for name in params}
    gradient = functools.partial(mean_gradient, model, x=task.x, y=task.y)
    return Start(anchor, task.config, task.received, task.kept, gradient)


def _leaves(fixed: Sequence[Any], dtype: torch.dtype) -> tuple[list[list[Tensor]], TreeSpec]:
    """Return what stays fixed for each client, leaf by leaf; numbers, the same for all, as tensors."""
    flat, (spec, *_) = zip(*map(tree_flatten, fixed), strict=True)
    columns = []
    for column in zip(*flat, strict=True):
        if torch.is_tensor(column[0]):
            columns.append(list(column))
        else:
            columns.append([torch.tensor(column[0], dtype=dtype)] * len(column))
    return columns, spec


def _rows(schedule: Schedule, num_examples: int, start: int, generator: Generator, width: int) -> Tensor:
    """Return a client's batches as rows of the chunk's samples, ``(steps, width)``; -1 where a batch has no more."""
    own = torch.arange(start, start + num_examples)
    batches = [batch for batch, _ in schedule.batches(own, own, generator)]
    padded = pad_sequence(batches, batch_first=True, padding_value=-1)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]), value=-1)
