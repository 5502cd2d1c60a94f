"""A model as a function of its parameters, and its forward pass in bfloat16."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module

from fedresearch.local.state_names import layers
from fedresearch.local.update import Tensors


class Forward:
    """A model that computes with given parameters.

    Parameters
    ----------
    model : Module
        The model. A call with its own parameters, ``params``, calls it directly.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self.params = dict(model.named_parameters())

    def __call__(self, params: Tensors, x: Tensor) -> Tensor:
        """Return the outputs for inputs ``(b, *input_shape)``.

        Only a call with the model's own parameters updates its running statistics.
        """
        if params is self.params:
            return self._model(x)
        buffers = {name: tensor.clone() for name, tensor in self._model.named_buffers()}
        return functional_call(self._model, (dict(params), buffers), (x,))

    def features(self, params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the inputs of the model's last layer as ``(b, num_features)``."""
        seen: list[Tensor] = []
        hook = layers(self._model)[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            outputs = self(params, x)
        finally:
            hook.remove()
        if not seen:
            raise ValueError("the model must call its last layer, whose inputs are the features; it did not")
        return outputs, seen[-1].flatten(start_dim=1).to(outputs.dtype)


def compute_in_bfloat16(model: Module) -> None:
    """Let a model's forward pass compute in bfloat16 where torch's autocast does, on any device.

    Its parameters, their gradients and its outputs keep their dtype, and so do losses and optimizers.
    """
    model.forward = _Bfloat16Forward(model)


class _Bfloat16Forward:
    """A model's ``forward``, as an object so that models can be copied and pickled."""

    def __init__(self, model: Module) -> None:
        self._model = model

    def __call__(self, x: Tensor, *arguments: Any) -> Tensor:
        # Without its cache, which holds the weights of one step.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            outputs: Tensor = type(self._model).forward(self._model, x, *arguments)
        return outputs.to(next(self._model.parameters()).dtype)
