"""The client half of a strategy: one client's round as functions of tensors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import Module

from fedresearch.local.objective import losses
from fedresearch.local.state_names import Names, trainable

# A model's parameters, or values of the same names such as gradients.
Tensors = Mapping[str, Tensor]
# Several ``Tensors`` by name: what a message carries in addition to the model, or what a client keeps.
Groups = Mapping[str, Tensors]
# The values that stay fixed during a round: tensors and numbers, in nested mappings.
Fixed = Mapping[str, Any]


class Model(Protocol):
    """A model as a function of its parameters: :class:`fedresearch.local.forward.Forward`."""

    def __call__(self, params: Tensors, x: Tensor) -> Tensor:
        """Return the outputs."""

    def features(self, params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and the features ``(b, num_features)``, which are the inputs of the last layer."""


class Start(NamedTuple):
    """What a client has at the beginning of its round.

    Attributes
    ----------
    anchor : mapping of str to Tensor
        The global model's parameters; for those that the client never shares, its own.
    config : mapping of str to float
        The numbers that the server sent, under the keys of its ``ConfigRecord``; ``"lr"`` is the learning rate.
    received : mapping
        The other records that the server sent: record name to tensors.
    kept : mapping
        What ``end`` returned as ``kept`` in the client's last round; empty in its first one.
    gradient : callable
        The loss's mean gradient over all of the client's samples, at given parameters.
    loss : callable
        The mean loss over these samples, ``()``, as in an evaluation: in double precision, without dropout and with the
        running statistics.
    server_round, partition_id : int
        The round, from 1, and the client's partition.
    seed : int
        The seed of this client in this round: whatever the update draws must come from it.
    """

    anchor: Tensors
    config: Mapping[str, float]
    received: Groups
    kept: Groups
    gradient: Callable[[Tensors], Tensors]
    loss: Callable[[Tensors], Tensor]
    server_round: int
    partition_id: int
    seed: int


class End(NamedTuple):
    """What a client returns at the end of its round.

    Attributes
    ----------
    sent : mapping
        What the client sends in addition to the model: record name to tensors.
    kept : mapping
        What the client receives as ``Start.kept`` in its next round.
    params : mapping of str to Tensor
        The parameters that the client sends in place of its trained ones of these names. Its personal parts stay the
        trained ones.
    metrics : mapping of str to float
        Numbers about this round, of the same names for every client. The strategy averages them with its weights, into
        the columns ``train/NAME``.
    """

    sent: Groups = MappingProxyType({})
    kept: Groups = MappingProxyType({})
    params: Tensors = MappingProxyType({})
    metrics: Mapping[str, float] = MappingProxyType({})


class Stage(NamedTuple):
    """One part of a round's training.

    Attributes
    ----------
    trained : set of str
        The parameters that are trained; empty: the stage is skipped.
    epochs : int or None
        Passes over the client's data; None: as in the run's ``local`` section.
    """

    trained: Names
    epochs: int | None = None


class Term(NamedTuple):
    """What is added to the gradient at w: ``shift + mu (w - anchor)``.

    Attributes
    ----------
    shift : mapping of str to Tensor
        A vector for each parameter; empty: none.
    mu : float
        Weight of the proximal term.
    anchor : mapping of str to Tensor
        Its origin; empty: no proximal term.
    """

    shift: Tensors = MappingProxyType({})
    mu: float = 0.0
    anchor: Tensors = MappingProxyType({})


class LocalUpdate:
    """FedAvg's local training, which minimises the loss (McMahan et al. 2017, arXiv:1602.05629, ClientUpdate).

    A strategy overrides what it changes. ``begin``, ``objective``, ``term``, ``correct`` and ``end`` are pure: they
    read their arguments and return tensors. ``begin`` and ``end`` are called once for each client; ``objective``,
    ``term`` and ``correct`` in every step, for one client or, under ``torch.func.vmap``, for many at once.
    ``personal``, ``stages`` and ``adaptation`` are called once for each run, and return names of the model's parts.
    """

    own_model: "LocalUpdate | None" = None
    """The training of a second model that the client keeps, in addition to the global one; None: it does not exist."""

    def personal(self, model: Module) -> Names:
        """Return the names in the ``state_dict`` that stay on the client: it neither sends nor receives them."""
        return frozenset()

    def stages(self, model: Module) -> tuple[Stage, ...]:
        """Return the stages of a client's training in a round, in their order."""
        return (Stage(trainable(model)),)

    def adaptation(self, model: Module) -> tuple[Stage, ...]:
        """Return the stages that a client trains on its training data before it evaluates the model as its own."""
        return ()

    def begin(self, start: Start) -> Fixed:
        """Return the values that stay fixed during the round."""
        return {}

    def objective(self, model: Model, params: Tensors, x: Tensor, y: Tensor, fixed: Fixed) -> Tensor:
        """Return the objective of each sample of a batch, ``(b,)``; a local step descends its mean.

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

    def term(self, fixed: Fixed) -> Term:
        """Return what is added to the gradients of the objective.

        A term whose gradient is known belongs here and not in the objective: it costs less, and the reported training
        loss stays the same quantity for every strategy.
        """
        return Term()

    def correct(self, gradients: Tensors, params: Tensors, fixed: Fixed) -> Tensors:
        """Return the gradients for the optimizer from those of the objective at ``params``.

        By default ``term`` is added; without a term they are returned unchanged. Override it where gradients change in
        another way.
        """
        term = self.term(fixed)
        if term.shift:
            gradients = {name: gradient + term.shift[name] for name, gradient in gradients.items()}
        if term.anchor:
            mu, anchor = term.mu, term.anchor
            gradients = {name: gradient + mu * (params[name] - anchor[name]) for name, gradient in gradients.items()}
        return gradients

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Return what the client sends in addition to the trained model or in its place, what it keeps and measured.

        Parameters
        ----------
        params : mapping of str to Tensor
            The trained parameters; the next training changes them in place.
        fixed : mapping
            What ``begin`` returned.
        drift : callable
            ``drift(mu)`` is the distance that the local steps would move a parameter with the constant gradient 1 and
            a proximal term of weight mu: FedNova's ``eta * |a|_1``, which is ``eta * tau`` for plain SGD.
        """
        return End()
