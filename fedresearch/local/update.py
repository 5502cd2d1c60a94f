"""The client half of a strategy: what one client does in its round, as functions of tensors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import Module

from fedresearch.local.objective import losses
from fedresearch.local.state_names import Names, trainable

# A model's parameters, or what goes with them, by name.
Tensors = Mapping[str, Tensor]
# Several of these, each under a name of its own: what a message carries beside the model, what a client keeps.
Groups = Mapping[str, Tensors]
# What stays the same during a round: tensors and numbers, in mappings of mappings.
Fixed = Mapping[str, Any]


class Model(Protocol):
    """A model as a function of its parameters: :class:`fedresearch.local.forward.Forward`."""

    def __call__(self, params: Tensors, x: Tensor) -> Tensor:
        """Return the outputs."""

    def features(self, params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and the features, ``(b, num_features)``, that the last layer makes them from."""


class Start(NamedTuple):
    """What a client has when its round begins.

    Attributes
    ----------
    anchor : mapping of str to Tensor
        The global model's parameters; those that the client never shares, its own.
    config : mapping of str to float
        The numbers that the server sent, under the keys of its ``ConfigRecord``; ``"lr"`` is the learning rate.
    received : mapping
        What else the server sent: record name to tensors.
    kept : mapping
        What ``end`` returned in the client's last round; empty before.
    gradient : callable
        The loss's mean gradient over all of the client's samples, at given parameters.
    loss : callable
        The mean loss itself, ``()``, as an evaluation has it: in double precision, without dropout and by the running
        statistics.
    """

    anchor: Tensors
    config: Mapping[str, float]
    received: Groups
    kept: Groups
    gradient: Callable[[Tensors], Tensors]
    loss: Callable[[Tensors], Tensor]


class End(NamedTuple):
    """What a client leaves when its round ends.

    Attributes
    ----------
    sent : mapping
        What goes to the server beside the model: record name to tensors.
    kept : mapping
        What the client finds again as ``Start.kept``.
    """

    sent: Groups = MappingProxyType({})
    kept: Groups = MappingProxyType({})


class Stage(NamedTuple):
    """One training within a round.

    Attributes
    ----------
    trained : set of str
        The parameters that move; none: the stage is left out.
    epochs : int or None
        Passes over the client's data; None: what the run's ``local`` section says.
    """

    trained: Names
    epochs: int | None = None


class LocalUpdate:
    """Plain local training, FedAvg's (McMahan et al. 2017, arXiv:1602.05629, ClientUpdate): minimise the loss.

    A strategy overrides what it changes. ``begin``, ``objective``, ``correct`` and ``end`` are pure: they read their
    arguments and return tensors. ``begin`` and ``end`` are called once a client; ``objective`` and ``correct`` in every
    step, for one client or, under ``torch.func.vmap``, for many at once. ``personal``, ``stages`` and ``adaptation``
    say which parts of the model are whose, and are asked once.
    """

    own_model: "LocalUpdate | None" = None
    """How the client trains a second model, of its own, beside the global one; None: it does not."""

    def personal(self, model: Module) -> Names:
        """Return the names in the ``state_dict`` that a client keeps and neither sends nor receives."""
        return frozenset()

    def stages(self, model: Module) -> tuple[Stage, ...]:
        """Return what a client trains in its round, one stage after another."""
        return (Stage(trainable(model)),)

    def adaptation(self, model: Module) -> tuple[Stage, ...]:
        """Return what a client trains, on its training data, before it evaluates the model as its own."""
        return ()

    def begin(self, start: Start) -> Fixed:
        """Return what stays fixed during the round."""
        return {}

    def objective(self, model: Model, params: Tensors, x: Tensor, y: Tensor, fixed: Fixed) -> Tensor:
        """Return, for each sample of a batch, what a local step descends the mean of: ``(b,)``.

        Parameters
        ----------
        model : callable
            Parameters and inputs to outputs.
        params : mapping of str to Tensor
            The current parameters.
        x, y : Tensor
            One batch: inputs ``(b, *input_shape)`` and targets ``(b, ...)``.
        fixed : mapping
            What ``begin`` returned.
        """
        return losses(model(params, x), y)

    def correct(self, gradients: Tensors, params: Tensors, fixed: Fixed) -> Tensors:
        """Return what the optimizer is given for the gradients of the objective at ``params``.

        Terms whose gradient is known belong here rather than in the objective: they cost less, and the training loss
        that is reported stays the same quantity for every strategy.
        """
        return gradients

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Return what is sent beside the trained model, and what is kept.

        Parameters
        ----------
        params : mapping of str to Tensor
            The trained parameters; the next training moves them in place.
        fixed : mapping
            What ``begin`` returned.
        drift : callable
            ``drift(mu)`` is how far the local steps would have moved a parameter against the constant gradient 1, with
            a proximal term of weight mu: ``eta * |a|_1`` of FedNova, ``eta * tau`` for plain SGD.
        """
        return End()
