"""The names in a model's ``state_dict`` of its parameters, buffers, head and normalisation."""

from collections.abc import Collection, Sequence

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

Names = frozenset[str]


def parameters(model: Module) -> Names:
    """Return the names of the parameters; a shared parameter has its first name."""
    return frozenset(name for name, _ in model.named_parameters())


def first_names(model: Module) -> dict[str, str]:
    """Return the name in the ``state_dict`` of each parameter, with its first one if several modules share it."""
    named = [*model.named_parameters(remove_duplicate=False)]
    first = {id(tensor): name for name, tensor in reversed(named)}
    return {name: first[id(tensor)] for name, tensor in named}


def trainable(model: Module) -> Names:
    """Return the names of the parameters that are not frozen."""
    return frozenset(name for name, tensor in model.named_parameters() if tensor.requires_grad)


def has_hooks(param: Tensor) -> bool:
    """Return whether a parameter's gradient has hooks, which no copy of it has."""
    return bool(param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None))


def hooked(model: Module) -> list[str]:
    """Return the names of the parameters whose gradients have hooks."""
    return [name for name, param in model.named_parameters() if has_hooks(param)]


def buffers(model: Module) -> Names:
    """Return the names of the buffers: the running statistics of BatchNorm, above all."""
    return frozenset(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def layers(model: Module) -> Sequence[Module]:
    """Return the modules that hold parameters of their own, in the model's order."""
    return [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]


def head(model: Module, modules: Sequence[str] | None) -> Names:
    """Return the names of the head.

    Parameters
    ----------
    model : Module
        The model.
    modules : sequence of str or None
        The names of the modules that form the head; an empty sequence: an empty head; None: the last layer with
        parameters.

    Raises
    ------
    ValueError
        If the model has no module with parameters of such a name.
    """
    if modules is None:
        return _of(model, [layers(model)[-1]])
    named = dict(model.named_modules())
    for name in modules:
        if not name or name not in named or not _of(model, [named[name]]):
            allowed = [known for known, module in named.items() if known and _of(model, [module])]
            raise ValueError(f"the head may consist of {', '.join(allowed)}, got {name or 'nothing'}")
    return _of(model, [named[name] for name in modules])


def normalisation(model: Module) -> Names:
    """Return the names of the BatchNorm layers' scales, shifts and running statistics."""
    return _of(model, [module for module in model.modules() if isinstance(module, _NormBase)])


def remove_running_statistics(model: Module) -> None:
    """Make BatchNorm normalise by the batch's statistics, in evaluation too, without running ones."""
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _of(model: Module, modules: Collection[Module]) -> Names:
    held = {id(tensor) for module in modules for tensor in module.state_dict(keep_vars=True).values()}
    return frozenset(name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in held)
