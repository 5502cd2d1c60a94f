"""All steps of a chunk's training in one stage, as functions of tensors."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from fedresearch.local.compiled import Code, States, optimize
from fedresearch.local.forward import Forward
from fedresearch.local.inputs import Inputs
from fedresearch.local.mixing import Targets, objective
from fedresearch.local.train import MakeOptimizer
from fedresearch.local.update import LocalUpdate, Tensors

# The values that a step changes: parameters, the optimizer's state, each client's sum of losses.
Moving = tuple[Tensors, States, Tensor]
# A step's rows ``(chunk, batch)``, and each transform's random numbers for their samples.
Batches = tuple[Tensor, list[Tensors]]
# The values that stay: untrained parameters, what ``begin`` returned, the learning rate, all samples' x and y.
Constant = tuple[Tensors, list[Tensor], Tensor, Tensor, Tensor]


class Steps:
    """The steps of one stage, for chunks of one shape.

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
    spec : TreeSpec
        The structure of what ``begin`` returned, whose leaves are among the values that stay.
    axes : list of int or None
        For each leaf: 0 if each client has its own, None if all clients share it.
    compile : callable
        ``compile(function, arguments)`` returns the function or its compiled code.
    """

    def __init__(
        self,
        update: LocalUpdate,
        inputs: Inputs,
        forward: Forward,
        make_optimizer: MakeOptimizer,
        spec: TreeSpec,
        axes: list[int | None],
        compile: Callable[[Code, Sequence[Tensor]], Code],
    ) -> None:
        self._update, self._inputs, self._forward, self._make_optimizer = update, inputs, forward, make_optimizer
        self._spec, self._axes, self._compile = spec, axes, compile
        self._code: dict[int, Code] = {}
        self._after: dict[int, TreeSpec] = {}

    def __call__(
        self, trained: Tensors, total: Tensor, batches: Batches, constant: Constant
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the trained parameters and the sums of losses after all steps.

        Parameters
        ----------
        trained : mapping of str to Tensor
            The parameters to train, ``(chunk, ...)``.
        total : Tensor
            Each client's sum of losses so far, ``(chunk,)``.
        batches : tuple
            Each step's batches, ``(steps, chunk, batch)``: rows of x and y. The complement of a negative entry is a row
            that only pads. Then the transforms' random numbers for these samples.
        constant
            The values that stay.
        """
        moving, spec = tree_flatten((trained, {}, total))
        drawn, constants = tree_flatten(batches), tree_flatten(constant)
        with torch.no_grad():
            for batch in zip(*(tensor.unbind() for tensor in drawn[0]), strict=True):
                # The first step creates the optimizer's state, if it has one; then later steps need a second code.
                number = len(moving)
                arguments = [*moving, *batch, *constants[0]]
                if number not in self._code:
                    self._code[number] = self._make(number, (spec, drawn[1], constants[1]), arguments)
                moving = list(self._code[number](*arguments))
                spec = self._after[number]
        after, _, total = tree_unflatten(moving, spec)
        return after, total

    def _make(self, number: int, specs: Sequence[TreeSpec], arguments: Sequence[Tensor]) -> Code:
        ends = [*accumulate(spec.num_leaves for spec in specs)]

        def function(*flat: Tensor) -> Sequence[Tensor]:
            parts = zip([0, *ends], ends, specs, strict=False)
            leaves, self._after[number] = tree_flatten(
                self._step(*(tree_unflatten(flat[start:end], spec) for start, end, spec in parts))
            )
            return leaves

        return self._compile(function, arguments)

    def _step(self, moving: Moving, batch: Batches, constant: Constant) -> Moving:
        (before, state, total), (index, drawn), (others, leaves, lr, x, y) = moving, batch, constant
        is_real = index >= 0
        rows = torch.where(is_real, index, ~index)
        # The samples of all clients at once: each is transformed alone, or with a partner of its batch.
        samples, flat = rows.flatten(), tree_map(lambda tensor: tensor.flatten(0, 1), drawn)
        made = self._inputs.make(x[samples], y[samples], flat)
        inputs, targets = tree_map(lambda tensor: tensor.unflatten(0, rows.shape), made)
        gradients, losses = vmap(self._gradients, in_dims=(0, 0, 0, 0, 0, self._axes))(
            before, others, inputs, targets, is_real, leaves
        )
        params = {name: tensor.clone() for name, tensor in before.items()}
        state = {name: {key: value.clone() for key, value in own.items()} for name, own in state.items()}
        state = optimize(self._make_optimizer, params, gradients, state, lr)
        is_training = is_real.any(dim=1)
        after = {
            name: torch.where(is_training.view(-1, *[1] * (tensor.dim() - 1)), tensor, before[name])
            for name, tensor in params.items()
        }
        return after, state, total + losses

    def _gradients(
        self, trained: Tensors, others: Tensors, x: Tensor, y: Targets, is_real: Tensor, leaves: list[Tensor]
    ) -> tuple[Tensors, Tensor]:
        """Return one client's corrected gradients and its loss."""
        fixed = tree_unflatten(leaves, self._spec)

        def mean(trained: Tensors) -> Tensor:
            losses = objective(self._update, self._forward, {**others, **trained}, x, y, fixed)
            return torch.where(is_real, losses, 0.0).sum() / is_real.sum().clamp(min=1)

        gradients, loss = grad_and_value(mean)(trained)
        return self._update.correct(gradients, trained, fixed), loss
