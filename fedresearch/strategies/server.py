"""The server half of a strategy: the next global model as a function of the last one and the clients' replies."""

from collections.abc import Iterable, Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedresearch.errors import InputError
from fedresearch.federation.broadcast import add_records
from fedresearch.federation.records import ARRAYS, CONFIG, NUM_CLIENTS, Values, array_record, number, view
from fedresearch.federation.replies import Replies

# A model's parameters, or values of the same names.
Params = Mapping[str, Values]
# What goes along with the model: numbers, and records of arrays.
Sent = Mapping[str, float | Params]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ServerUpdate(FedAvg):
    """FedAvg's server, which takes the mean of the clients' models (McMahan et al. 2017, arXiv:1602.05629).

    A strategy overrides what it changes. Its attributes are its state: checkpoints keep them, if they are numbers,
    text, arrays, or lists, dicts or objects of them. Running statistics are aggregated apart, see
    ``strategy.buffers``: ``x``, ``mean`` and ``replies.params`` are without them.

    Parameters
    ----------
    **options
        Of :class:`flwr.serverapp.strategy.FedAvg`.

    Attributes
    ----------
    server_round : int
        The round, from 1.
    num_clients : int
        Number of clients with training data, whether they train in this round or not.
    """

    server_round = 0
    num_clients = 0
    _x: Params = _NOTHING

    def send(self, x: Params) -> Sent:
        """Return what the clients receive in addition to the model ``x``.

        Numbers arrive in ``Start.config``, and mappings of arrays in ``Start.received``, under their names.
        """
        return _NOTHING

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Return the next global model.

        Parameters
        ----------
        x : mapping of str to ndarray
            The global model that the clients received; read-only.
        mean : mapping of str to ndarray
            The weighted mean of the clients' models.
        replies : Replies
            All that they sent.
        """
        return mean

    def diagnostics(self) -> Mapping[str, float]:
        """Return numbers for the round's row after ``step``: NAME becomes the column ``train/NAME``."""
        return _NOTHING

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the model until the replies are there, and send what ``send`` returns along."""
        self.server_round, self.num_clients = server_round, int(number(config, NUM_CLIENTS))
        self._x = {name: view(array) for name, array in arrays.items()}
        records = {}
        for name, value in self._returned("send", self.send(self._x)).items():
            if name in (*config, "server-round", ARRAYS, CONFIG):
                raise InputError(f"{type(self).__name__}.send returns {name}, which messages have already; rename it")
            if isinstance(value, Mapping):
                records[name] = array_record(value)
            elif isinstance(value, Real):
                config[name] = float(value)
            else:
                raise InputError(
                    f"{type(self).__name__}.send must return numbers and mappings of arrays, got {name} of type "
                    f"{type(value).__name__}"
                )
        return add_records(super().configure_train(server_round, arrays, config, grid), records)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model of ``step``, and the clients' metrics with the diagnostics."""
        found = Replies(replies, self.weighted_by_key)
        x, self._x = self._x, {}  # a checkpoint need not hold it
        stepped = array_record(self._returned("step", self.step(x, found.mean_params(), found)))
        metrics = found.aggregate_metrics(self.train_metrics_aggr_fn)
        for name, value in self._returned("diagnostics", self.diagnostics()).items():
            if name in metrics:
                raise InputError(f"{type(self).__name__}.diagnostics returns {name}, which clients send; rename it")
            try:
                metrics[name] = float(value)
            except (TypeError, ValueError):
                raise InputError(
                    f"{type(self).__name__}.diagnostics must return numbers, got {name} of type {type(value).__name__}"
                ) from None
        return stepped, metrics

    def _returned(self, method: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what an overridden method returned, if it is a mapping."""
        if not isinstance(value, Mapping):
            raise InputError(
                f"{type(self).__name__}.{method} must return a mapping of names to values, got {type(value).__name__}"
            )
        return value
