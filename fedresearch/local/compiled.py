"""A training step as compiled code: traced once, so that a call has no checks and takes microseconds."""

import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from fedresearch.local.code_folder import VARIABLE, code_folder
from fedresearch.local.train import MakeOptimizer
from fedresearch.local.update import Tensors

# From tensors to tensors, with the number and shapes with which it was traced.
Code = Callable[..., Sequence[Tensor]]
# Optimizer states by parameter.
States = Mapping[str, Tensors]


def keep_code_in(cache_dir: str | Path) -> None:
    """Set Inductor's cache to a folder that only this user can write, since its code is executed.

    Inductor's default is a folder in /tmp that any user may have created before.

    Raises
    ------
    InputError
        As ``code_folder``.
    """
    os.environ[VARIABLE] = str(code_folder(cache_dir))


def compile_code(function: Code, arguments: Sequence[Tensor]) -> Code:
    """Return a function compiled for arguments of these shapes; Inductor caches the code on disk.

    ``torch.compile`` checks its assumptions before each call, which takes longer than a small model's step.
    """
    for name in ("torch.utils.cpp_extension", "torch._inductor.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of missing CUDA
    graph = make_fx(function)(*arguments)
    for node in reversed(graph.graph.nodes):
        if "record_function" in str(node.target):  # the optimizer's marks for the profiler
            graph.graph.erase_node(node)
    graph.recompile()
    import torch._inductor
    from torch._inductor import codecache

    if VARIABLE in os.environ:  # Inductor ignores it for its precompiled headers
        codecache._HEADER_DIR = f"{os.environ[VARIABLE]}/precompiled_headers"
        codecache._HEADER_LOCK_DIR = f"{codecache._HEADER_DIR}/locks"
    code = torch._inductor.compile(graph, list(arguments))
    # The compiler's modules stay, so the garbage collector skips them from now on.
    gc.collect()
    gc.freeze()
    return code


def optimize(make_optimizer: MakeOptimizer, params: Tensors, gradients: Tensors, state: States, lr: Tensor) -> States:
    """Update parameters in place by a new optimizer with the state of the last step, and return the new state.

    Parameters
    ----------
    make_optimizer : callable
        ``make_optimizer(parameters)``, with any learning rate.
    params, gradients : mapping of str to Tensor
        The parameters and their gradients.
    state : mapping of str to mapping
        The optimizer's state by parameter; empty before the first step.
    lr : Tensor
        The learning rate, ``()``. It is a tensor so that the traced code does not contain its value.

    Raises
    ------
    ValueError
        If the optimizer's state contains values that are not tensors.
    """
    for name, gradient in gradients.items():
        params[name].grad = gradient
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for the count of steps, on which Adam's corrections depend
    try:
        optimizer = make_optimizer(list(params.values()))
        optimizer.state.update({params[name]: dict(entries) for name, entries in state.items()})
        for group in optimizer.param_groups:
            # By one tensor at a time: torch's multi-tensor kernels, its default on a GPU, take no lr that is a tensor.
            group |= {"lr": lr, "foreach": False, "fused": False}
            if "capturable" in group:  # on a GPU, the count of steps is there too
                group["capturable"] = lr.is_cuda
        with _TensorsForNumbers():
            optimizer.step()
    finally:
        torch.set_default_dtype(dtype)
    after = {name: optimizer.state.get(param, {}) for name, param in params.items()}
    for entries in after.values():
        for key, value in entries.items():
            if not isinstance(value, Tensor | None):
                raise ValueError(f"the optimizer's state must be tensors, got {key}={value!r}")
    return {name: {k: v for k, v in entries.items() if v is not None} for name, entries in after.items() if entries}


_OUT_OF_PLACE: dict[Any, Callable[..., Tensor]] = {
    Tensor.lerp_: torch.lerp,
    Tensor.addcmul_: torch.addcmul,
    Tensor.addcdiv_: torch.addcdiv,
}


class _TensorsForNumbers(TorchFunctionMode):
    """Accepts 0-dimensional tensors where an optimizer uses numbers, so that a trace does not contain their values.

    ``item`` returns the tensor; ``add(x, alpha=tensor)`` and ``addcdiv(x, y, value=tensor)`` multiply by it.
    Methods for which ``torch.func.vmap`` has no rule compute out of place.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.item:
            return args[0]
        for key in ("alpha", "value"):
            if isinstance(kwargs.get(key), Tensor):
                target, factor, *rest = args
                args = (target, factor * kwargs.pop(key), *rest)
        if func in _OUT_OF_PLACE:
            return args[0].copy_(_OUT_OF_PLACE[func](*args, **kwargs))
        return func(*args, **kwargs)
