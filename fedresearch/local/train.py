"""One client's training in one round."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedresearch.local.update import LocalUpdate


@dataclass(frozen=True)
class Schedule:
    """How long a client trains, and on how much at once.

    Attributes
    ----------
    epochs : int or None
        Passes over the client's data; None: as many as ``steps`` needs.
    steps : int or None
        Batches; None: as many as ``epochs`` makes.
    batch_size : int
        Samples a batch; the last of an epoch may hold fewer. 0: all of the client's data.
    """

    epochs: int | None
    steps: int | None
    batch_size: int

    def batches(self, x: Tensor, y: Tensor, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a client's batches, its samples in a new order in each epoch.

        A full batch needs no order: the samples stay as they are.
        """
        num_examples = len(y)
        batch_size = self.batch_size or num_examples
        left = self.steps if self.steps is not None else (self.epochs or 0) * -(-num_examples // batch_size)
        while left > 0:
            if batch_size >= num_examples:
                yield from repeat((x, y), left)
                return
            # One gather an epoch; the batches are views of it.
            order = torch.randperm(num_examples, generator=generator)[: left * batch_size]
            inputs, targets = x[order].split(batch_size), y[order].split(batch_size)
            yield from zip(inputs, targets, strict=True)
            left -= len(inputs)


def train(
    model: Module,
    x: Tensor,
    y: Tensor,
    *,
    update: LocalUpdate,
    config: Mapping[str, float],
    optimizer: Callable[[Iterator[Tensor]], Optimizer],
    schedule: Schedule,
    generator: Generator,
) -> tuple[float, int]:
    """Train a model in place on one client's samples.

    Parameters
    ----------
    model : Module
        The model with the round's global parameters.
    x, y : Tensor
        Inputs ``(n, *input_shape)`` and targets ``(n, ...)``, with n at least 1.
    update : LocalUpdate
        The client half of the strategy.
    config : mapping of str to float
        The numbers that the server sent.
    optimizer : callable
        Makes the optimizer of the given parameters; its state is new in every round.
    schedule : Schedule
        Epochs or steps, and batch size.
    generator : torch.Generator
        Orders the samples.

    Returns
    -------
    loss : float
        Mean over the steps of the batch's loss before the step.
    num_steps : int
        Steps taken.
    """
    model.train()
    params = dict(model.named_parameters())
    fixed = update.begin(params, config)
    stepper = optimizer(model.parameters())
    total = torch.zeros((), dtype=torch.float64)
    num_steps = 0
    for inputs, targets in schedule.batches(x, y, generator):
        stepper.zero_grad()
        loss = update.objective(model, params, inputs, targets, fixed)
        loss.backward()
        stepper.step()
        total += loss.detach()
        num_steps += 1
    return total.item() / num_steps, num_steps
