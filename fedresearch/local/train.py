"""One client's training in one round."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fedresearch.inherited import inherits
from fedresearch.local.forward import Forward
from fedresearch.local.generators import seeded_for_client
from fedresearch.local.inputs import Inputs
from fedresearch.local.mixing import Targets, objective
from fedresearch.local.objective import mean_gradient, mean_loss
from fedresearch.local.update import End, Fixed, Groups, LocalUpdate, Stage, Start, Tensors
from fedresearch.seeding import Purpose

MakeOptimizer = Callable[..., Optimizer]

# torch imports its compiler, which takes seconds, at the first call of this method with its wrapper. Without, it adds
# parameters just so.
Optimizer.add_param_group = inspect.unwrap(Optimizer.add_param_group)  # type: ignore[method-assign]


def _split(x: Tensor, y: Tensor, batch_size: int) -> Iterable[tuple[Tensor, Targets]]:
    return zip(x.split(batch_size), y.split(batch_size), strict=True)


@dataclass(frozen=True)
class LocalWork:
    """The amount of a client's local training.

    Attributes
    ----------
    epochs : int or None
        Passes over the client's data; None: ``steps`` decides.
    steps : int or None
        Number of batches; None: ``epochs`` decides.
    batch_size : int
        Samples in a batch; the last one of an epoch may be smaller. 0: all of the client's data.
    """

    epochs: int | None
    steps: int | None
    batch_size: int

    def for_stage(self, stage: Stage) -> "LocalWork":
        """Return the work of a stage, which may set its own epochs."""
        return self if stage.epochs is None else LocalWork(stage.epochs, None, self.batch_size)

    def orders(self, num_examples: int, generator: Generator, share: float = 1.0) -> Iterator[Tensor | slice]:
        """Yield the order of a client's samples in each epoch; the last one may be shorter.

        For full batches it is a slice: the samples stay in their order. A share of the work is its first batches,
        rounded up and at least one.
        """
        batch_size = self.batch_size or num_examples
        num_batches = -(-num_examples // batch_size)
        total = self.steps if self.steps is not None else (self.epochs or 0) * num_batches
        total = min(total, max(1, math.ceil(share * total - 1e-9)))  # a third of 3 batches is one, also in floats
        for left in range(total, 0, -num_batches):
            if batch_size >= num_examples:
                yield slice(None)
            else:
                yield torch.randperm(num_examples, generator=generator)[: left * batch_size]

    def batches(
        self,
        x: Tensor,
        y: Tensor,
        generator: Generator,
        split: Callable[[Tensor, Tensor, int], Iterable[tuple[Tensor, Targets]]] = _split,
        share: float = 1.0,
    ) -> Iterator[tuple[Tensor, Targets]]:
        """Yield a client's batches, or a share of them; each epoch has a new order of the samples.

        ``split`` returns the inputs and targets of an epoch's batches for its samples, targets and the size of a batch.
        """
        batch_size = self.batch_size or len(y)
        for order in self.orders(len(y), generator, share):
            # One gather for each epoch; the batches are views of it.
            yield from split(x[order], y[order], batch_size)


class Task(NamedTuple):
    """One client's training in one round.

    Attributes
    ----------
    start : mapping of str to Tensor
        The ``state_dict`` to start from.
    x, y : Tensor
        Samples ``(n, *input_shape)`` and targets ``(n, ...)``, with n at least 1.
    update : LocalUpdate
        The client half of the strategy.
    stages : sequence of Stage
        The stages of the training, in their order.
    config : mapping of str to float
        The numbers that the server sent; ``"lr"`` is the learning rate.
    seed_of : callable
        The seed of a purpose: ``"batches"`` for the order of the samples, ``"dropout"`` for the model's own draws,
        ``"transforms"``, and ``"local-update"`` for the update's.
    inputs : Inputs
        Makes the model's inputs of samples.
    anchor : mapping, optional
        The global model's ``state_dict``, if the training starts from a different one.
    received, kept : mapping
        The other records that the server sent, and what the client kept from its last round.
    optimizer_state : mapping, optional
        The optimizers' state from which to continue; None: they start anew in every round.
    share : float
        The share of its work that the client does, in each stage.
    server_round, partition_id : int
        What ``Start`` says about the round and the client.
    """

    start: Tensors
    x: Tensor
    y: Tensor
    update: LocalUpdate
    stages: Sequence[Stage]
    config: Mapping[str, float]
    seed_of: Callable[[Purpose], int]
    inputs: Inputs = Inputs()
    anchor: Tensors | None = None
    received: Groups = MappingProxyType({})
    kept: Groups = MappingProxyType({})
    optimizer_state: Tensors | None = None
    share: float = 1.0
    server_round: int = 1
    partition_id: int = 0


class Trained(NamedTuple):
    """The result of a client's training.

    Attributes
    ----------
    state : mapping of str to Tensor
        The trained model's ``state_dict``; the next training may change its tensors.
    loss : float
        Mean over the steps of the batch's objective before each step.
    num_steps : int
        Number of steps.
    end : End
        What ``LocalUpdate.end`` returned.
    optimizer_state : mapping
        The optimizers' state after the last step, for the next round.
    """

    state: Tensors
    loss: float
    num_steps: int
    end: End
    optimizer_state: Tensors


class LocalTrainer:
    """Trains a model in place, on one task after another.

    Parameters
    ----------
    model : Module
        The model; its parameters are replaced by each task's.
    optimizer : callable
        ``optimizer(parameters, lr=lr)``; each stage of a task has a new one.
    work : LocalWork
        Epochs or steps, and batch size; a stage may set its own epochs.
    """

    def __init__(self, model: Module, optimizer: MakeOptimizer, work: LocalWork) -> None:
        self.model, self._optimizer, self._work = model, optimizer, work
        self._forward = Forward(model)
        self._trainable = [tensor for tensor in self._forward.params.values() if tensor.requires_grad]
        self._orders, self._numbers = Generator(), Generator()
        self._weights: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(self, task: Task) -> Trained:
        """Train on a task. The next call changes the returned tensors.

        Raises
        ------
        ValueError
            If no stage trains a parameter; or if the update needs the steps' drift, which is unknown for an optimizer
            that continues from an earlier round.
        """
        model, params, update = self.model, self._forward.params, task.update
        make_optimizer = functools.partial(self._optimizer, lr=task.config["lr"])
        self._load(task.start)
        if not model.training:
            model.train()
        self._orders.manual_seed(task.seed_of("batches"))
        if task.inputs.transforms:
            self._numbers.manual_seed(task.seed_of("transforms"))
        losses: list[Tensor] = []
        state: dict[str, Tensor] = {}
        # The draws of a model (dropout), and those of an update that does not use its own seed.
        with seeded_for_client(task.x.device, task.seed_of("dropout")):
            fixed = update.begin(starting(task, model, params))
            try:
                for number, stage in enumerate(task.stages):
                    trained = {name: tensor for name, tensor in params.items() if name in stage.trained}
                    if trained:
                        stepper = make_optimizer(list(trained.values()))
                        _restore(stepper, trained, task.optimizer_state or {}, f"{number}/")
                        self._train(task, stage, trained, fixed, stepper, losses)
                        state |= _state(stepper, trained, f"{number}/")
            finally:
                _require_grad(params.values(), self._trainable)
            if not losses:
                raise ValueError("no parameter is trained: all are frozen")
            num_steps = len(losses)
            end = update.end(
                {name: tensor.detach() for name, tensor in params.items()},
                fixed,
                functools.partial(drift if task.optimizer_state is None else _no_drift, make_optimizer, num_steps),
            )
        total = 0.0
        for loss in torch.stack(losses).tolist():  # read once, and added one after another in double precision
            total += loss
        return Trained(model.state_dict(), total / num_steps, num_steps, end, state)

    def _load(self, start: Tensors) -> None:
        """Load a ``state_dict`` without its checks, which take longer than a small model's step, if it fits."""
        own = self.model.state_dict()
        if start.keys() == own.keys() and all(start[name].shape == tensor.shape for name, tensor in own.items()):
            for name, tensor in own.items():
                tensor.copy_(start[name])
        else:
            self.model.load_state_dict(start)

    def _train(
        self,
        task: Task,
        stage: Stage,
        trained: Mapping[str, Tensor],
        fixed: Fixed,
        stepper: Optimizer,
        losses: list[Tensor],
    ) -> None:
        """Train parameters in the steps of a stage, and append each step's loss."""
        forward, update = self._forward, task.update
        params, tensors, weights = forward.params, list(trained.values()), self._weights
        split = functools.partial(task.inputs.split, generator=self._numbers)
        step, no_grad = bare_step(stepper), torch.no_grad()
        corrects = True
        _require_grad(params.values(), tensors)
        for inputs, targets in self._work.for_stage(stage).batches(task.x, task.y, self._orders, split, task.share):
            for tensor in tensors:
                tensor.grad = None
            each = objective(update, forward, params, inputs, targets, fixed)
            key = len(inputs), each.dtype
            if key not in weights:
                weights[key] = torch.full_like(each, 1 / len(inputs), requires_grad=False)
            _backward(each, weights[key])  # the gradient of their mean, without the mean in the graph
            with no_grad:
                if corrects:
                    gradients = {name: tensor.grad for name, tensor in trained.items() if tensor.grad is not None}
                    corrected = update.correct(gradients, trained, fixed)
                    if corrected is not gradients:
                        _replace(gradients, corrected, trained)
                    elif inherits(update, LocalUpdate, "correct"):
                        corrects = False  # it will in no other step either
                step()
            losses.append(each.detach().dot(weights[key]))


def bare_step(optimizer: Optimizer) -> Callable[[], object]:
    """Return a function for ``optimizer.step`` that must be called without gradients.

    Of torch's own optimizers, it is the function below the wrappers for its compiler and its profiler, which take half
    of a small step, and whose first call imports the compiler. They matter to optimizers with hooks.
    """
    kind = type(optimizer)
    is_plain = not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    if is_plain and kind.__module__.startswith("torch.optim.") and "step" not in vars(optimizer):
        return functools.partial(inspect.unwrap(kind.step), optimizer)
    return optimizer.step


def _backward(tensor: Tensor, gradient: Tensor) -> None:
    """Do as ``tensor.backward(gradient)``, without its checks, which take a fifth of a small step and import SymPy."""
    run_backward((tensor,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _require_grad(tensors: Iterable[Tensor], required: Sequence[Tensor]) -> None:
    """Let some of the tensors require gradients, and the others not."""
    chosen = {id(tensor) for tensor in required}
    for tensor in tensors:
        tensor.requires_grad_(id(tensor) in chosen)


def _replace(gradients: Tensors, corrected: Tensors, trained: Tensors) -> None:
    if corrected.keys() != gradients.keys():
        raise ValueError(f"correct must return the gradients of {[*gradients]}, got {[*corrected]}")
    for name, gradient in corrected.items():
        trained[name].grad = gradient


def starting(task: Task, model: Module, names: Iterable[str]) -> Start:
    """Return what a client has at the beginning of its round, for the named parameters."""
    anchor = {name: (task.anchor or task.start)[name] for name in names}
    gradient = functools.partial(mean_gradient, model, x=task.x, y=task.y, prepare=task.inputs.prepare)
    loss = functools.partial(mean_loss, model, x=task.x, y=task.y, prepare=task.inputs.prepare)
    return Start(
        anchor,
        task.config,
        task.received,
        task.kept,
        gradient,
        loss,
        task.server_round,
        task.partition_id,
        task.seed_of("local-update"),
    )


def drift(optimizer: MakeOptimizer, num_steps: int, mu: float) -> float:
    """Return how far steps of an optimizer move a parameter against the gradient ``1 - mu * displacement``.

    This is ``eta * |a|_1`` of Wang et al. 2020 (arXiv:2007.07481, Section 4) for any optimizer that is linear in its
    gradients: ``eta * tau`` for plain SGD; with momentum rho, ``eta * sum_k (1 - rho^k) / (1 - rho)``; with a proximal
    term, ``(1 - (1 - eta mu)^tau) / mu``. Weight decay counts as part of the gradients, as in the paper's experiments.

    Raises
    ------
    ValueError
        If the optimizer is not linear in its gradients, or if its steps cancel out.
    """
    # Two parameters, the second with twice the gradient; both are zero, so that weight decay has no effect.
    parameter, gradient = Parameter(torch.zeros(2, dtype=torch.float64)), torch.tensor([1.0, 2.0], dtype=torch.float64)
    step = bare_step(optimizer([parameter]))
    displacement = torch.zeros_like(gradient)
    for _ in range(num_steps):
        parameter.grad = gradient - mu * displacement
        with torch.no_grad():
            step()
        displacement -= parameter.detach()
        parameter.data.zero_()
    once, twice = displacement.tolist()
    if not math.isclose(2 * once, twice, rel_tol=1e-9):
        raise ValueError("the strategy needs an optimizer that is linear in its gradients; try optimizer=sgd")
    if once <= 0:
        raise ValueError(
            f"lr * mu must be below 1, or the local steps cancel out, got mu={mu}; try a smaller optimizer.lr"
        )
    return once


def _no_drift(optimizer: MakeOptimizer, num_steps: int, mu: float) -> float:
    raise ValueError(
        "the strategy needs optimizers that start anew in every round; try local.keep_optimizer_state=false"
    )


def _state(stepper: Optimizer, params: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}/{key}": value
        for name, tensor in params.items()
        for key, value in stepper.state.get(tensor, {}).items()
        if isinstance(value, Tensor)
    }


def _restore(stepper: Optimizer, params: Mapping[str, Tensor], state: Tensors, prefix: str) -> None:
    for key, value in state.items():
        if key.startswith(prefix):
            name, _, entry = key.removeprefix(prefix).rpartition("/")
            stepper.state[params[name]][entry] = copy.deepcopy(value)
