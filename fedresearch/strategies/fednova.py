"""FedNova (Wang et al. 2020, "Tackling the Objective Inconsistency Problem", arXiv:2007.07481).

Clients that take more steps pull further than their share of the data. With ``|a_i|_1`` the weight of a client's local
gradients in its update (its number of steps tau_i, for plain SGD) and p_i its share of the examples, equation 8 is ::

    x+ = x - tau_eff sum_i p_i (x - y_i) / |a_i|_1

with ``tau_eff = sum_i p_i |a_i|_1``, or ``sum_i p_i tau_i`` with a proximal term, as in the paper's experiments. What a
client's gradients weigh follows from its optimizer: see :func:`fedresearch.local.train.drift`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedresearch.federation.records import ARRAYS, NUM_STEPS, array_record, arrays_of, metrics_of, number, values
from fedresearch.local.update import End, Fixed, LocalUpdate, Start, Tensors
from fedresearch.strategies.client_mean import take
from fedresearch.strategies.fedprox import attract

_WEIGHT = "gradient-weight"
_MU = "proximal-mu"


class FedNova(FedAvg):
    """The server.

    Parameters
    ----------
    proximal_mu : float
        Weight of a proximal term on the clients, as in FedProx; 0: none.
    **options
        Of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(self, *, proximal_mu: float, **options: Any) -> None:
        super().__init__(**options)
        self.proximal_mu = proximal_mu
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep x, and send mu along."""
        self._arrays = arrays
        config[_MU] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the clients' updates, each brought to the same weight of gradients."""
        replies = list(replies)
        metrics = [metrics_of(reply.content) for reply in replies]
        a = [weight["a"].numpy().item() for weight in take(replies, _WEIGHT)]
        tau = [number(metric, NUM_STEPS) for metric in metrics] if self.proximal_mu else a
        tau_eff = np.average(tau, weights=[number(metric, self.weighted_by_key) for metric in metrics]).item()
        x = values(self._arrays)
        for reply, a_i in zip(replies, a, strict=True):
            if a_i != tau_eff:  # otherwise the model stays, bit for bit, what FedAvg averages
                y = values(arrays_of(reply.content))
                reply.content[ARRAYS] = array_record(
                    {name: x[name] + (y[name] - x[name]) * (tau_eff / a_i) for name in x}
                )
        return super().aggregate_train(server_round, replies)


class NormalizedUpdate(LocalUpdate):
    """The client: the loss with or without a proximal term, and what its gradients weighed."""

    def begin(self, start: Start) -> Fixed:
        """Keep x, mu and the learning rate."""
        return {"x": start.anchor, "mu": start.config[_MU], "lr": start.config["lr"]}

    def correct(self, gradients: Tensors, params: Tensors, fixed: Fixed) -> Tensors:
        """Add ``mu (w - x)``."""
        return attract(gradients, params, fixed["x"], fixed["mu"])

    def end(self, params: Tensors, fixed: Fixed, drift: Callable[[float], float]) -> End:
        """Send ``|a_i|_1``."""
        weight = drift(fixed["mu"]) / fixed["lr"]
        return End(sent={_WEIGHT: {"a": torch.tensor(weight, dtype=torch.float64)}})
