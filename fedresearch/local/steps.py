"""All steps of a cohort's training in one stage, as functions of tensors."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from fedresearch.local.compiled import Code, States, optimize
from fedresearch.local.forward import Forward
from fedresearch.local.generators import drawing_nothing
from fedresearch.local.inputs import Inputs
from fedresearch.local.lanes import Column, Lanes
from fedresearch.local.mixing import Targets, objective
from fedresearch.local.train import MakeOptimizer
from fedresearch.local.update import LocalUpdate, Tensors

# The values that a step changes: each lane's parameters, sum of losses and state of the optimizer.
Moving = tuple[Tensors, Tensor, States]
# Rows of x and y ``(lanes, batch)``, whether a client begins ``(lanes,)``, the transforms' random numbers.
Batch = tuple[Tensor, Tensor, list[Tensors]]
# The values that stay during a client's steps: parameters that are not trained, and what ``begin`` returned.
Fixed = tuple[Tensors, list[Tensor]]
# The learning rate, all samples' x and y.
Shared = tuple[Tensor, Tensor, Tensor]


class Steps:
    """The steps of one stage, in lanes of one shape.

    Parameters
    ----------
    update : LocalUpdate
        The client half of the strategy.
    inputs : Inputs
        Makes the model's inputs of samples.
    forward : Forward
        The model.
    make_optimizer : callable
        ``make_optimizer(parameters)``.
    names : sequence of str
        The parameters to train.
    spec : TreeSpec
        The structure of what ``begin`` returned.
    compile : callable
        ``compile(function, arguments)`` returns the function or its compiled code.
    """

    def __init__(
        self,
        update: LocalUpdate,
        inputs: Inputs,
        forward: Forward,
        make_optimizer: MakeOptimizer,
        names: Sequence[str],
        spec: TreeSpec,
        compile: Callable[[Code, Sequence[Tensor]], Code],
    ) -> None:
        self._update, self._inputs, self._forward, self._make_optimizer = update, inputs, forward, make_optimizer
        self._names, self._spec, self._compile = names, spec, compile
        self._code: Code | None = None
        self._axes: tuple[dict[str, int | None], list[int | None]] = {}, []
        self._no_state: list[Tensor] = []
        self._begins_at_zero = False

    def __call__(
        self, params: Mapping[str, Column], leaves: Sequence[Column], lanes: Lanes, batches: Batch, shared: Shared
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the clients' trained parameters and their sums of losses, ``(clients, ...)``.

        Parameters
        ----------
        params : mapping of str to Column
            The clients' parameters before the stage.
        leaves : sequence of Column
            What ``begin`` returned.
        lanes : Lanes
            Who trains when in which lane.
        batches : tuple
            Each step's batches, ``(steps, lanes, ...)``. In the rows, the complement of a negative entry is a row that
            only pads.
        shared : tuple of Tensor
            What all lanes read.
        """
        num_lanes, own = lanes.num_lanes, [params[name] for name in self._names]
        others = {name: column for name, column in params.items() if name not in self._names}
        columns, spec = tree_flatten((others, [*leaves]))
        fixed = [column.first if column.axis is None else column.lanes(num_lanes) for column in columns]
        moving = [column.lanes(num_lanes) for column in own]
        moving.append(torch.zeros(num_lanes, dtype=torch.float64, device=shared[1].device))
        results = [lane.new_empty((len(lanes.places), *lane.shape[1:])) for lane in moving]
        drawn, batch_spec = tree_flatten(batches)
        each_step = [*zip(*(tensor.unbind() for tensor in drawn), strict=True)]
        with torch.no_grad():
            if self._code is None:
                self._axes = tree_unflatten([column.axis for column in columns], spec)
                batch, constant = tree_unflatten(each_step[0], batch_spec), tree_unflatten(fixed, spec)
                self._code = self._make(moving, batch, constant, shared)
            moving += self._no_state
            for number, batch in enumerate(each_step):
                if number in lanes.begins:
                    for column, lane in zip([*own, *columns], [*moving[: len(own)], *fixed], strict=True):
                        if lane is not column.first:
                            column.put(lanes.begins[number], lane)
                moving = list(self._code(*moving, *batch, *fixed, *shared))
                if number in lanes.ends:
                    _, clients, ended = lanes.ends[number]
                    for result, lane in zip(results, moving, strict=False):
                        result.index_copy_(0, clients, lane.index_select(0, ended))
        *after, total = results
        return dict(zip(self._names, after, strict=True)), total

    def _make(self, moving: Sequence[Tensor], batch: Batch, fixed: Fixed, shared: Shared) -> Code:
        """Return the code of a step, from and to a flat list of tensors."""
        *trained, total = moving
        before = dict(zip(self._names, trained, strict=True))
        with drawing_nothing():  # which would not be a client's own, and once for all steps where they are compiled
            state = self._step((before, total, {}), batch, fixed, shared)[2]
        state = tree_map(lambda tensor: tensor.new_zeros(tensor.shape), state)
        self._no_state = tree_flatten(state)[0]
        self._begins_at_zero = self._equals_no_state(before, state)
        arguments, spec = tree_flatten(((before, total, state), batch, fixed, shared))

        def function(*flat: Tensor) -> list[Tensor]:
            after = tree_flatten(self._step(*tree_unflatten(flat, spec)))[0]
            return [tensor.contiguous() for tensor in after]

        return self._compile(function, arguments)

    def _step(self, moving: Moving, batch: Batch, fixed: Fixed, shared: Shared) -> Moving:
        """Return what all lanes have after a step."""
        (index, is_first, drawn), (lr, x, y) = batch, shared
        is_real = index >= 0
        rows = torch.where(is_real, index, ~index)
        # The samples of all lanes at once: each is transformed alone, or with a partner of its batch.
        samples, flat = rows.flatten(), tree_map(lambda tensor: tensor.flatten(0, 1), drawn)
        made = self._inputs.make(x[samples], y[samples], flat)
        inputs, targets = tree_map(lambda tensor: tensor.unflatten(0, rows.shape), made)
        step = vmap(self._step_of_one, in_dims=(0, 0, 0, 0, 0, self._axes, None))
        after: Moving = step(moving, inputs, targets, is_real, is_first, fixed, lr)
        return after

    def _step_of_one(
        self, moving: Moving, x: Tensor, y: Targets, is_real: Tensor, is_first: Tensor, fixed: Fixed, lr: Tensor
    ) -> Moving:
        """Return what one lane has after a step."""
        (before, total, state), (others, leaves) = moving, fixed
        values = tree_unflatten(leaves, self._spec)

        def mean(trained: Tensors) -> Tensor:
            losses = objective(self._update, self._forward, {**others, **trained}, x, y, values)
            return torch.where(is_real, losses, 0.0).sum() / is_real.sum().clamp(min=1)

        gradients, loss = grad_and_value(mean)(before)
        gradients = self._update.correct(gradients, before, values)

        total = torch.where(is_first, 0.0, total) + loss
        if self._begins_at_zero:
            state = tree_map(lambda tensor: torch.where(is_first, torch.zeros_like(tensor), tensor), state)
            params, state = self._optimized(before, gradients, state, lr)
            return params, total, state
        # A client's first step creates the optimizer's state, if it has one; another lane has no first step then.
        after = self._optimized(before, gradients, {}, lr)
        if state:
            continued = self._optimized(before, gradients, state, lr)
            after = tree_map(functools.partial(torch.where, is_first), after, continued)
        return after[0], total, after[1]

    def _optimized(self, before: Tensors, gradients: Tensors, state: States, lr: Tensor) -> tuple[Tensors, States]:
        """Return the parameters and the optimizer's state after its step, which changes copies."""
        params = {name: tensor.clone() for name, tensor in before.items()}
        state = {name: {key: value.clone() for key, value in own.items()} for name, own in state.items()}
        return params, optimize(self._make_optimizer, params, gradients, state, lr)

    def _equals_no_state(self, before: Tensors, state: States) -> bool:
        """Return whether an optimizer begins with zeros in its state, as Adam's, by a step from random numbers.

        Otherwise, as for SGD's momentum with dampening, each step is taken with and without a state.
        """
        if not state:
            return False
        generator = torch.Generator().manual_seed(0)
        params, gradients = (
            {name: torch.randn(each.shape[1:], generator=generator).to(each) for name, each in before.items()}
            for _ in range(2)
        )
        zeros = {name: {key: value[0] for key, value in own.items()} for name, own in state.items()}
        lr = torch.tensor(0.1).to(next(iter(params.values())))
        without, with_zeros = (tree_flatten(self._optimized(params, gradients, own, lr))[0] for own in ({}, zeros))
        return all(map(torch.equal, without, with_zeros))
