"""Adaptive federated optimisation as its paper writes it (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2).

With ``Delta_t`` the mean of the clients' updates, the server keeps::

    m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t
    v_t = v_{t-1} + Delta_t^2                                              FedAdagrad
    v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)       FedYogi
    v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2                          FedAdam
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

with ``m = 0`` and ``v = tau^2`` at the start. Flower's classes of these names start at ``v = 0``, and its FedAdam
corrects a bias that the paper's does not.
"""

from abc import abstractmethod
from typing import Any

import numpy as np

from fedresearch.federation.records import Values
from fedresearch.federation.replies import Replies
from fedresearch.strategies.server import Params, ServerUpdate


class _Adaptive(ServerUpdate):
    """What the three share.

    Parameters
    ----------
    eta : float
        Server learning rate.
    beta_1 : float
        Decay of the mean of the updates; 0: no momentum.
    tau : float
        Degree of adaptivity, added to the root of v; its square is v's start.
    **options
        Of :class:`ServerUpdate`.
    """

    def __init__(self, *, eta: float, beta_1: float, tau: float, **options: Any) -> None:
        super().__init__(**options)
        self.eta, self.beta_1, self.tau = eta, beta_1, tau
        self.m: dict[str, Values] = {}
        self.v: dict[str, Values] = {}

    @abstractmethod
    def second_moment(self, v: Values, squared: Values) -> Values:
        """Return v_t from v_{t-1} and Delta_t^2."""

    def step(self, x: Params, mean: Params, replies: Replies) -> Params:
        """Take the adaptive step from x_t."""
        stepped = {}
        for name, x_t in x.items():
            delta = mean[name] - x_t
            m, v = self.m.get(name, np.zeros_like(delta)), self.v.get(name, np.full_like(delta, self.tau**2))
            self.m[name] = m = self.beta_1 * m + (1 - self.beta_1) * delta
            self.v[name] = v = self.second_moment(v, delta**2)
            stepped[name] = x_t + self.eta * m / (np.sqrt(v) + self.tau)
        return stepped


class FedAdagrad(_Adaptive):
    """FedAdagrad; its paper runs it with ``beta_1 = 0``."""

    def second_moment(self, v: Values, squared: Values) -> Values:
        """Return the sum of the squares."""
        return v + squared


class _Decaying(_Adaptive):
    """What the two share whose squares decay.

    Parameters
    ----------
    beta_2 : float
        Decay of the squares, in [0, 1).
    **options
        Of ``_Adaptive``.
    """

    def __init__(self, *, beta_2: float, **options: Any) -> None:
        super().__init__(**options)
        self.beta_2 = beta_2


class FedYogi(_Decaying):
    """FedYogi."""

    def second_moment(self, v: Values, squared: Values) -> Values:
        """Return v moved towards the squares by a step whose size depends on them only."""
        return v - (1 - self.beta_2) * squared * np.sign(v - squared)


class FedAdam(_Decaying):
    """FedAdam."""

    def second_moment(self, v: Values, squared: Values) -> Values:
        """Return the decaying mean of the squares."""
        return self.beta_2 * v + (1 - self.beta_2) * squared
