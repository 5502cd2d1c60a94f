"""Chains of convolutions, Linear and ReLU, of which one call of compiled C++ trains a whole cohort: ``dense.cpp``.

The kernel computes what :class:`fedresearch.local.train.LocalTrainer` computes: the same batches in the same order, and
the same steps within the rounding of single precision.
"""

import ctypes
import functools
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, fx, nn
from torch.nn import Module, Parameter
from torch.nn import functional as F

from fedresearch.local.generators import drawing_nothing
from fedresearch.local.library import KernelUnavailable, library
from fedresearch.local.objective import losses
from fedresearch.local.state_names import has_hooks
from fedresearch.local.train import LocalWork, MakeOptimizer, bare_step

Array = NDArray[Any] | Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")
_MAX_POOL = 3
# From here on torch.randperm draws in another way.
_MAX_SAMPLES = 2**32 // 20
# Samples times parameters that take some tenths of a millisecond, so that a further thread is worth its start.
_NUMBERS_A_THREAD = 4_000_000
# What ``train`` in ``dense.cpp`` returns in addition to 0.
_NO_MEMORY, _WRONG_LABEL, _WRONG_ROWS = 1, 2, 3


class Sgd(NamedTuple):
    """The arguments of ``torch.optim.SGD``."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def make(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """Return PyTorch's optimizer."""
        return torch.optim.SGD(params, **self._asdict())


class Adam(NamedTuple):
    """The arguments of ``torch.optim.Adam`` or, with ``decoupled``, ``AdamW``."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    adam: bool = True

    def make(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """Return PyTorch's optimizer."""
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return kind(params, self.lr, (self.beta1, self.beta2), self.eps, self.weight_decay)


def optimizer_of(make_optimizer: MakeOptimizer, lr: float) -> Sgd | Adam | None:
    """Return the arguments of ``make_optimizer(parameters, lr=lr)`` if it is SGD, Adam or AdamW; else None."""
    # A matrix and a vector, which some put into groups of their own.
    optimizer = make_optimizer([Parameter(torch.zeros(1, 1)), Parameter(torch.zeros(1))], lr=lr)
    group, *others = optimizer.param_groups
    has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer)
    if others or len(group["params"]) < 2 or has_hooks or group.get("maximize") or group.get("amsgrad"):
        return None
    if type(optimizer) is torch.optim.SGD:
        return Sgd(**{name: group[name] for name in Sgd._fields})
    # Without eps the zeros that pad the kernel's vectors would be divided by zero.
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or not group["eps"]:
        return None
    decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
    beta1, beta2 = group["betas"]
    return Adam(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], decoupled)


class Conv(NamedTuple):
    """A convolution of stride 1, then ReLU and max pooling by windows of ``pool`` pixels a side."""

    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel_height: int
    kernel_width: int
    pad_height: int
    pad_width: int
    pool: int

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the outputs."""
        height = (self.height + 2 * self.pad_height - self.kernel_height + 1) // self.pool
        width = (self.width + 2 * self.pad_width - self.kernel_width + 1) // self.pool
        return self.out_channels, height, width


class Chain(NamedTuple):
    """Convolutions, and the widths of the dense layers after them, from their inputs on."""

    convs: tuple[Conv, ...]
    widths: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        """Number of values of a sample."""
        return math.prod(self.convs[0][:3]) if self.convs else self.widths[0]

    @property
    def sizes(self) -> list[tuple[tuple[int, ...], int]]:
        """Each layer's shape of weights and number of biases."""
        convs = [((c.out_channels, c.in_channels, c.kernel_height, c.kernel_width), c.out_channels) for c in self.convs]
        return [*convs, *(((num_out, num_in), num_out) for num_in, num_out in pairwise(self.widths))]

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) + num for shape, num in self.sizes)

    def outputs(self, params: Tensor, x: Tensor) -> Tensor:
        """Return what PyTorch computes with the parameters ``(P,)`` of inputs ``(b, ...)``."""
        pieces = iter(params.split([length for shape, num in self.sizes for length in (math.prod(shape), num)]))
        layers = [(next(pieces).view(shape), next(pieces)) for shape, _ in self.sizes]
        h = x
        for conv, (weight, bias) in zip(self.convs, layers, strict=False):
            h = F.conv2d(h.view(-1, *conv[:3]), weight, bias, padding=(conv.pad_height, conv.pad_width))
            h = F.max_pool2d(h.relu(), conv.pool)
        h = h.flatten(1)
        for place, (weight, bias) in enumerate(layers[len(self.convs) :]):
            h = F.linear(h.relu() if place else h, weight, bias)
        return h


def chain_of(model: Module, input_shape: Sequence[int]) -> Chain | None:
    """Return the chain that a model is, for samples of a shape; None if it computes anything else.

    Convolutions come first, each with ReLU and, before or after it, max pooling, which have the same values and
    gradients in both orders. Inputs of the first Linear may be flattened. All of the ``state_dict`` must be weights and
    biases on the CPU, each once, in the chain's order, trainable and of single precision. The model then is in training
    mode, in which it must have the chain's outputs and gradients.
    """
    try:
        with drawing_nothing():
            nodes = fx.symbolic_trace(model.train()).graph.nodes
    except Exception:  # of the model's code, which may do what a trace cannot follow
        return None
    modules = dict(model.named_modules())
    called = [modules.get(str(node.target)) if node.op == "call_module" else None for node in nodes]
    layers = [module for module in called if isinstance(module, nn.Linear | nn.Conv2d)]
    params = [param for module in layers for param in (module.weight, cast(Tensor, module.bias))]
    ids = [*map(id, params)]
    kinds = "".join(map(_kind, nodes, called))
    is_chain = (
        re.fullmatch(
            r"input (flatten |(conv (relu (pool\d )?|pool\d relu ))+flatten )?(linear relu )*linear output ", kinds
        )
        and all(node.args[:1] == (previous,) for previous, node in pairwise(nodes))
        and not any(map(_is_changed, modules.values()))
        and [*map(id, model.state_dict(keep_vars=True).values())] == ids
        and len({*ids}) == len(ids)
        and all(map(_is_plain, params))
    )
    if not is_chain:
        return None
    pools = [int(digit or 1) for digit in re.findall(r"conv (?:relu )?(?:pool(\d))?", kinds)]
    if pools and len(input_shape) != 3:
        return None
    shape, convs = (*input_shape,), []
    for layer, pool in zip(layers, pools, strict=False):
        assert isinstance(layer, nn.Conv2d)
        num_in, height, width = shape
        kernel, padding = cast(tuple[int, int], layer.kernel_size), cast(tuple[int, int], layer.padding)
        convs.append(Conv(num_in, height, width, layer.out_channels, *kernel, *padding, pool))
        shape = convs[-1].output_shape
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    chain = Chain((*convs,), (math.prod(shape), *(module.out_features for module in linear)))
    return chain if _computes(model, chain, input_shape, params) else None


def _is_changed(module: Module) -> bool:
    """Return whether a module has hooks, or computes something other than its class."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or "forward" in vars(module)


def _is_plain(param: Tensor) -> bool:
    return param.requires_grad and param.dtype == torch.float32 and param.is_cpu and not has_hooks(param)


def _computes(model: Module, chain: Chain, input_shape: Sequence[int], params: Sequence[Tensor]) -> bool:
    """Return whether a model has a chain's outputs and gradients, also where a trace shows nothing, as of no_grad.

    At parameters that are several times as large as usual, which a model may limit.
    """
    generator = Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator)
    before = [param.detach().clone() for param in params]
    large = [
        torch.randn(param.shape, generator=generator) * 4 / math.sqrt(math.prod(param.shape[1:])) for param in params
    ]
    copies = [each.clone().requires_grad_() for each in large]
    try:
        _set(params, large)
        outputs = model(x)
        found = outputs, *torch.autograd.grad((outputs + 1).square().sum(), params)
        outputs = chain.outputs(torch.cat([copy.ravel() for copy in copies]), x)
        expected = outputs, *torch.autograd.grad((outputs + 1).square().sum(), copies)
    except Exception:  # of shapes that do not fit
        return False
    finally:
        _set(params, before)
    return all(
        one.shape == other.shape and (one - other).abs().max() <= 1e-4 * other.abs().max()
        for one, other in zip(found, expected, strict=True)
    )


def _set(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)


def _kind(node: fx.Node, module: Module | None) -> str:
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input ", "output": "output "}[node.op]
    function = node.target if module is None else None
    if type(module) is nn.Linear:
        return "linear "
    if type(module) is nn.Conv2d:
        is_plain = module.stride == module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros"
        return "conv " if is_plain and not isinstance(module.padding, str) and module.bias is not None else "other "
    if type(module) is nn.MaxPool2d:
        return _pool(**{name: getattr(module, name) for name in module.__constants__})
    if function is F.max_pool2d:
        return _pool(*node.args[1:], **node.kwargs)
    if type(module) is nn.ReLU or function in (F.relu, torch.relu, "relu"):
        return "relu "
    dims: tuple[Any, ...] = ()
    if type(module) is nn.Flatten:
        dims = module.start_dim, module.end_dim
    elif function in (torch.flatten, "flatten"):
        dims = (*node.args[1:], *node.kwargs.values(), -1)
    return "flatten " if dims[:2] == (1, -1) else "other "


def _pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> str:
    sides = [side for side in range(1, _MAX_POOL + 1) if _each(kernel_size, side)]
    if not sides or ceil_mode or return_indices or not (_each(padding, 0) and _each(dilation, 1)):
        return "other "
    return f"pool{sides[0]} " if stride is None or _each(stride, sides[0]) else "other "


def _each(values: Any, number: int) -> bool:
    """Return whether a setting is a number in each dimension."""
    return values in (number, (number, number), [number, number])


class _Job(ctypes.Structure):
    """``Job`` in ``dense.cpp``."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("num_clients", "num_samples", "num_layers", "epochs", "max_steps", "batch_size", "threads"),
                *("numbers_a_thread", "num_params", "is_bytes", "squared_error", "own_params", "own_shift", "nesterov"),
                *("num_convs", "num_inputs", "adam", "decoupled"),
            )
        ),
        *(
            (name, ctypes.c_double)
            for name in ("lr", "momentum", "dampening", "weight_decay", "mu", "beta1", "beta2", "eps")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("convs", "widths", "starts", "sizes", "seeds", "shares", "x", "y", "scale", "offset"),
                *("params", "anchor", "shift", "out", "losses", "steps"),
            )
        ),
    ]


class DenseKernel:
    """Trains cohorts of chains of convolutions, Linear and ReLU by SGD or Adam, on all of its threads.

    A client's bits depend neither on the other clients, nor on their order, nor on the number of threads.

    Parameters
    ----------
    model : Chain
        As ``chain_of`` returns it.
    squared_error : bool
        Whether the loss is the squared error; else it is the cross-entropy.
    threads : int
        Number of threads.
    cache_dir : path
        The parent of the folder of compiled code; the first use on a machine compiles for some seconds.

    Raises
    ------
    KernelUnavailable
        If the kernel cannot be compiled or loaded, or if it differs here from PyTorch.
    """

    def __init__(self, model: Chain, squared_error: bool, threads: int, cache_dir: str | Path) -> None:
        self._model, self._num_params = model, model.num_params
        self._convs, self._widths = (np.array(numbers, np.int64) for numbers in model)
        self._squared_error, self._threads = squared_error, threads
        self._same_in_all_jobs = {
            "num_layers": len(self._widths) - 1,
            "threads": threads,
            "num_params": model.num_params,
            "squared_error": squared_error,
            "num_convs": len(self._convs),
            "num_inputs": model.num_inputs,
            "convs": self._convs.ctypes.data,
            "widths": self._widths.ctypes.data,
        }
        self._train = _library(cache_dir).train
        self._compare_with_torch()

    def __call__(
        self,
        *,
        x: Array,
        y: Array,
        scale: Array | None = None,
        offset: Array | None = None,
        starts: Array,
        sizes: Array,
        seeds: Array,
        shares: Array | None = None,
        work: LocalWork,
        params: Array,
        optimizer: Sgd | Adam,
        shift: Array | None = None,
        mu: float = 0.0,
        anchor: Array | None = None,
        out: Array,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Train C clients, and return their losses and numbers of steps ``(C,)``, as in ``Trained``.

        Vectors of P parameters have the order of the ``state_dict``.

        Parameters
        ----------
        x, y : array
            All clients' samples: ``(N, d)`` of float32 or uint8, and int64 classes ``(N,)`` or float32 targets
            ``(N, k)``.
        scale, offset : array, optional
            Inputs are ``x * scale + offset``, ``(d,)``.
        starts, sizes : array
            The first row and the number of rows of each client, ``(C,)``.
        seeds : array
            The seed of the order of each client's samples, ``(C,)``.
        shares : array, optional
            The share of its work that each client does, ``(C,)``; None: all of it.
        work : LocalWork
            The work.
        params : array
            The parameters from which clients start: ``(P,)`` for all, or ``(C, P)``.
        optimizer : Sgd or Adam
            The optimizer, which begins anew for each client.
        shift : array, optional
            What is added to each gradient, ``(P,)`` or ``(C, P)``.
        mu : float
            Weight of the proximal term ``mu (w - anchor)`` of the gradient.
        anchor : array, optional
            Its origin ``(P,)``; None: ``params``.
        out : array
            Receives the trained parameters, ``(C, P)`` of float32.

        Raises
        ------
        ValueError
            If an array has another shape, or if a label is not a class.
        MemoryError
            If there is not enough memory.
        """
        x, y, out = np.asarray(x), np.asarray(y), np.asarray(out)
        if not out.flags.c_contiguous:
            raise ValueError("out must be contiguous")
        clients, params_shape, per_client = (len(sizes),), (self._num_params,), (len(sizes), self._num_params)
        losses, steps = np.empty(clients), np.empty(clients, np.int64)
        width, num_outputs = self._model.num_inputs, self._model.widths[-1]
        y_type, y_shape = (np.float32, (len(x), num_outputs)) if self._squared_error else (np.int64, (len(x),))
        arrays = {
            "starts": _array("starts", starts, np.int64, clients),
            "sizes": _array("sizes", sizes, np.int64, clients),
            "seeds": _array("seeds", seeds, np.uint64, clients),
            "x": _array("x", x, np.uint8 if x.dtype == np.uint8 else np.float32, (len(x), width)),
            "y": _array("y", y, y_type, y_shape),
            "params": _array("params", params, np.float32, params_shape, per_client),
            "out": _array("out", out, np.float32, per_client),
            "losses": losses,
            "steps": steps,
        }
        if shares is not None:
            arrays["shares"] = _array("shares", shares, np.float64, clients)
        if scale is not None or offset is not None:
            arrays["scale"] = _array("scale", scale, np.float32, (width,))
            arrays["offset"] = _array("offset", offset, np.float32, (width,))
        if shift is not None:
            arrays["shift"] = _array("shift", shift, np.float32, params_shape, per_client)
        if anchor is not None:
            arrays["anchor"] = _array("anchor", anchor, np.float32, params_shape)
        job = _Job(
            num_clients=len(sizes),
            num_samples=len(x),
            epochs=work.epochs or 0,
            max_steps=-1 if work.steps is None else work.steps,
            batch_size=work.batch_size,
            numbers_a_thread=_NUMBERS_A_THREAD,
            is_bytes=x.dtype == np.uint8,
            own_params=arrays["params"].ndim == 2,
            own_shift=shift is not None and arrays["shift"].ndim == 2,
            mu=mu,
            **self._same_in_all_jobs,
            **optimizer._asdict(),
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        status = self._train(ctypes.byref(job))
        if status == _NO_MEMORY:
            raise MemoryError(f"{self._threads} threads of the kernel need more memory than there is")
        if status == _WRONG_LABEL:
            raise ValueError(f"labels must be from 0 to {num_outputs - 1}")
        if status == _WRONG_ROWS:
            raise ValueError(f"each client must have 1 to {_MAX_SAMPLES - 1} of the {len(x)} rows of x")
        return losses, steps

    def _compare_with_torch(self) -> None:
        """Train two clients of three samples by the kernel and by autograd.

        Raises
        ------
        KernelUnavailable
            If the results differ.
        """
        generator = np.random.default_rng(0)
        num_samples, num_outputs = 6, self._model.widths[-1]
        x = generator.normal(size=(num_samples, self._model.num_inputs)).astype(np.float32)
        y = generator.integers(num_outputs, size=num_samples)
        if self._squared_error:
            y = generator.normal(size=(num_samples, num_outputs)).astype(np.float32)
        start = np.concatenate(
            [
                generator.normal(size=math.prod(shape) + num) / math.sqrt(math.prod(shape[1:]) + 1)
                for shape, num in self._model.sizes
            ]
        ).astype(np.float32)
        work, mu, seeds = LocalWork(2, None, 2), 0.1, [1, 2**40 + 1]
        # With a small eps Adam's first steps have the gradient's sign, which rounding may change.
        optimizers: list[Sgd | Adam] = [Sgd(0.05, 0.5, nesterov=True), Adam(0.05, eps=0.01, weight_decay=0.1)]
        out = np.empty((2, len(start)), np.float32)
        where = {"starts": np.array([0, 3]), "sizes": np.array([3, 3]), "seeds": np.array(seeds, np.uint64)}
        for optimizer in optimizers:
            self(x=x, y=y, **where, work=work, params=start, optimizer=optimizer, mu=mu, out=out)
            for client, seed in enumerate(seeds):
                rows = slice(3 * client, 3 * client + 3)
                samples = torch.from_numpy(x[rows]), torch.from_numpy(y[rows])
                expected = _train(self._model, *samples, seed, torch.from_numpy(start), work, optimizer, mu)
                if not np.abs(out[client] - expected).max() <= 0.01 * np.abs(expected - start).max():
                    raise KernelUnavailable("the compiled kernel differs from PyTorch")


def _array(name: str, value: Array | None, dtype: type[np.generic], *shapes: tuple[int, ...]) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype != dtype or array.shape not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"{name} must be {np.dtype(dtype)} {allowed}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)


def _train(
    model: Chain, x: Tensor, y: Tensor, seed: int, start: Tensor, work: LocalWork, optimizer: Sgd | Adam, mu: float
) -> NDArray[np.float32]:
    """Return what a client trains by autograd."""
    params = start.clone().requires_grad_()
    step = bare_step(optimizer.make([params]))
    for inputs, targets in work.batches(x, y, Generator().manual_seed(seed)):
        assert isinstance(targets, Tensor)
        objective = losses(model.outputs(params, inputs), targets).mean() + mu / 2 * (params - start).square().sum()
        (params.grad,) = torch.autograd.grad(objective, [params])
        with torch.no_grad():
            step()
    return params.detach().numpy()


@functools.cache
def _library(cache_dir: str | Path) -> ctypes.CDLL:
    """Return the compiled kernel, whose batches are those of torch."""
    kernel = library(_SOURCE, cache_dir, contracts=True)
    kernel.draw_orders.argtypes = [ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    kernel.draw_orders.restype = None
    for seed, num in ((0, 1), (1, 2), (5, 63), (2**63 - 1, 1000)):
        orders = np.empty((2, num), np.uint32)
        kernel.draw_orders(seed, num, 2, orders.ctypes.data)
        generator = Generator().manual_seed(seed)
        if orders.tolist() != [torch.randperm(num, generator=generator).tolist() for _ in range(2)]:
            raise KernelUnavailable(
                f"torch.randperm of PyTorch {torch.__version__} draws other numbers than the kernel"
            )
    return kernel
