"""All steps of a chunk's training in one stage, as functions of tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fedresearch.local.compiled import Code, States, optimize
from fedresearch.local.forward import Forward
from fedresearch.local.train import MakeOptimizer
from fedresearch.local.update import LocalUpdate, Tensors

# The values that a step changes: parameters, the optimizer's state, each client's sum of losses.
Moving = tuple[Tensors, States, Tensor]
# The values that stay: untrained parameters, what ``begin`` returned, the learning rate, all samples' x and y.
Constant = tuple[Tensors, list[Tensor], Tensor, Tensor, Tensor]


class Steps:
    """The steps of one stage, for chunks of one shape.

    Parameters
    ----------
    update : LocalUpdate
        The client half of the strategy.
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
        forward: Forward,
        make_optimizer: MakeOptimizer,
        spec: TreeSpec,
        axes: list[int | None],
        compile: Callable[[Code, Sequence[Tensor]], Code],
    ) -> None:
        self._update, self._forward, self._make_optimizer = update, forward, make_optimizer
        self._spec, self._axes, self._compile = spec, axes, compile
        self._code: dict[int, Code] = {}
        self._after: dict[int, TreeSpec] = {}

    def __call__(
        self, trained: Tensors, total: Tensor, index: Tensor, constant: Constant
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the trained parameters and the sums of losses after all steps.

        Parameters
        ----------
        trained : mapping of str to Tensor
            The parameters to train, ``(chunk, ...)``.
        total : Tensor
            Each client's sum of losses so far, ``(chunk,)``.
        index : Tensor
            Each step's batches, ``(steps, chunk, batch)``: rows of x and y. The complement of a negative entry is a row
            that only pads.
        constant
            The values that stay.
        """
        moving, spec = tree_flatten((trained, {}, total))
        held = tree_flatten(constant)
        with torch.no_grad():
            for batch in index.unbind():
                # The first step creates the optimizer's state, if it has one; then later steps need a second code.
                number = len(moving)
                if number not in self._code:
                    self._code[number] = self._make(number, spec, [*moving, batch, *held[0]], held[1])
                moving = list(self._code[number](*moving, batch, *held[0]))
                spec = self._after[number]
        after, _, total = tree_unflatten(moving, spec)
        return after, total

    def _make(self, number: int, spec: TreeSpec, arguments: Sequence[Tensor], held: TreeSpec) -> Code:
        def function(*flat: Tensor) -> Sequence[Tensor]:
            moving = tree_unflatten(flat[:number], spec)
            leaves, self._after[number] = tree_flatten(
                self._step(moving, flat[number], tree_unflatten(flat[number + 1 :], held))
            )
            return leaves

        return self._compile(function, arguments)

    def _step(self, moving: Moving, batch: Tensor, constant: Constant) -> Moving:
        (before, state, total), (others, leaves, lr, x, y) = moving, constant
        is_real = batch >= 0
        rows = torch.where(is_real, batch, ~batch)
        gradients, losses = vmap(self._gradients, in_dims=(0, 0, 0, 0, 0, self._axes))(
            before, others, x[rows], y[rows], is_real, leaves
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
        self, trained: Tensors, others: Tensors, x: Tensor, y: Tensor, is_real: Tensor, leaves: list[Tensor]
    ) -> tuple[Tensors, Tensor]:
        """Return one client's corrected gradients and its loss."""
        fixed = tree_unflatten(leaves, self._spec)

        def objective(trained: Tensors) -> Tensor:
            losses = self._update.objective(self._forward, {**others, **trained}, x, y, fixed)
            return torch.where(is_real, losses, 0.0).sum() / is_real.sum().clamp(min=1)

        gradients, loss = grad_and_value(objective)(trained)
        return self._update.correct(gradients, trained, fixed), loss
