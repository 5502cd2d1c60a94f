"""FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127).

The server's half is Flower's: it averages as FedAvg and sends ``proximal-mu`` along. The client's half is here.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedresearch.local.update import LocalUpdate, Tensors

_MU = "proximal-mu"


class ProximalUpdate(LocalUpdate):
    """Minimise ``F_k(w) + mu/2 |w - w_t|^2`` (the paper's equation 2), w_t the global model's parameters."""

    def begin(self, anchor: Tensors, config: Mapping[str, float]) -> Tensors:
        """Keep the global model's parameters, and mu."""
        fixed = {name: tensor.detach().clone() for name, tensor in anchor.items()}
        return fixed | {_MU: torch.tensor(config[_MU], dtype=next(iter(fixed.values())).dtype)}

    def objective(
        self, forward: Callable[[Tensor], Tensor], params: Tensors, x: Tensor, y: Tensor, fixed: Tensors
    ) -> Tensor:
        """Return the loss and the penalty on the distance from the global model."""
        squares = [((tensor - fixed[name]) ** 2).sum() for name, tensor in params.items()]
        distance = torch.stack(squares).sum()
        return super().objective(forward, params, x, y, fixed) + fixed[_MU] / 2 * distance
