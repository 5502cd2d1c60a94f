"""A training step as a CUDA graph: recorded once, then launched at once and not kernel by kernel."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from fedresearch.local.compiled import Code

log = logging.getLogger("fedresearch")


class Replayed:
    """Code whose second call is recorded; later calls replay it. What a call returns changes with the next call.

    Code that also computes on the CPU, as Adam's count of steps, is not recorded.

    Parameters
    ----------
    code : callable
        From tensors to tensors. Its last arguments are all samples' x and y, which stay the same.
    """

    def __init__(self, code: Code) -> None:
        self._code, self._graph = code, torch.cuda.CUDAGraph()
        self._is_first = self._can_record = True
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """Return what the code returns."""
        if self._is_first:  # which may compile kernels
            outputs = self._code(*arguments)
            self._is_first, self._can_record = False, all(tensor.is_cuda for tensor in (*arguments, *outputs))
            return outputs
        if self._can_record and not self._inputs:
            self._record(arguments)
        if not self._can_record:
            return self._code(*arguments)
        moved = defaultdict(list)
        for own, given in zip(self._inputs, arguments, strict=True):
            if own.data_ptr() != given.data_ptr():
                moved[own.dtype].append((own, given))
        for pairs in moved.values():
            torch._foreach_copy_([own for own, _ in pairs], [given for _, given in pairs])
        self._graph.replay()
        return self._outputs

    def _record(self, arguments: Sequence[Tensor]) -> None:
        inputs = [*(tensor.clone() for tensor in arguments[:-2]), *arguments[-2:]]
        try:
            with torch.cuda.graph(self._graph):
                self._outputs = self._code(*inputs)
        except Exception as error:  # of a dozen types; an error of the model occurs again without a graph
            self._can_record = False
            log.warning("the step could not be recorded and is launched by its parts: %s", str(error).split("\n")[0])
        else:
            self._inputs = inputs
