"""Which parts of a model are its head, its normalisation, its statistics: names in its ``state_dict``."""

from collections.abc import Collection, Sequence

from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

Names = frozenset[str]


def parameters(model: Module) -> Names:
    """Return the names of the parameters; of one that has several, the first."""
    return frozenset(name for name, _ in model.named_parameters())


def trainable(model: Module) -> Names:
    """Return the names of the parameters that are not frozen."""
    return frozenset(name for name, tensor in model.named_parameters() if tensor.requires_grad)


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
        The modules that are the head, by their names in the model; none of them: an empty head. None: the last layer
        that holds parameters.

    Raises
    ------
    ValueError
        If the model has no such module with parameters.
    """
    if modules is None:
        return _of(model, [layers(model)[-1]])
    named = dict(model.named_modules())
    for name in modules:
        if not name or name not in named or not _of(model, [named[name]]):
            allowed = [known for known, module in named.items() if known and _of(model, [module])]
            raise ValueError(f"the head may be made of {', '.join(allowed)}, got {name or 'nothing'}")
    return _of(model, [named[name] for name in modules])


def normalisation(model: Module) -> Names:
    """Return the names of all that BatchNorm layers hold: scales, shifts and running statistics."""
    return _of(model, [module for module in model.modules() if isinstance(module, _NormBase)])


def forget_statistics(model: Module) -> None:
    """Let BatchNorm normalise by the batch's own statistics, in evaluation too, and keep no running ones."""
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _of(model: Module, modules: Collection[Module]) -> Names:
    held = {id(tensor) for module in modules for tensor in module.state_dict(keep_vars=True).values()}
    return frozenset(name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in held)
