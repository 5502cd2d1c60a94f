"""Strategies: what is FedAvg in a special case, what one cohort shares with its clients, what keeps its dtype."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from fedresearch.local.update import LocalUpdate
from fedresearch.models.mlp import MLP
from fedresearch.strategies.fedprox import ProximalUpdate


@pytest.mark.parametrize("update", [LocalUpdate(), ProximalUpdate()], ids=lambda update: type(update).__name__)
def test_updates_of_a_cohort_are_those_of_its_clients(update):
    """Three clients' gradients in one call of vmap, and one after another."""
    generator = torch.Generator().manual_seed(0)
    model = MLP((4,), 3, widths=[5]).double()
    x = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 6), generator=generator)
    anchor = dict(model.named_parameters())
    fixed = update.begin(anchor, {"proximal-mu": 0.7})
    params = {
        name: torch.stack([p.detach() + torch.randn(p.shape, generator=generator).double() for _ in range(3)])
        for name, p in anchor.items()
    }

    def objective(params, x, y):
        return update.objective(lambda x: functional_call(model, params, (x,)), params, x, y, fixed)

    cohort = vmap(grad(objective))(params, x, y)
    for i in range(3):
        alone = grad(objective)({name: p[i] for name, p in params.items()}, x[i], y[i])
        for name, gradient in alone.items():
            torch.testing.assert_close(cohort[name][i], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedavgm", "strategy.server.server_momentum=0.0"],
        ["strategy=fedprox", "strategy.server.proximal_mu=0"],
    ],
    ids=["FedAvgM without momentum", "FedProx without a penalty"],
)
def test_what_is_fedavg_bit_for_bit(run, overrides):
    fedavg, other = run("federation.num_rounds=3"), run("federation.num_rounds=3", *overrides)
    assert [row["model/sha256"] for row in other.rows] == [row["model/sha256"] for row in fedavg.rows]


@pytest.mark.parametrize("strategy", ["fedadam", "fedadam_reddi", "fedmedian", "krum", "qfedavg", "fedavgm"])
def test_float32_stays_float32(run, strategy):
    result = run(f"strategy={strategy}", "federation.num_rounds=2", "local.epochs=1")
    assert {array.dtype.name for array in result.arrays.values()} == {"float32"}
    assert all(np.isfinite(row["eval/loss"]) for row in result.rows)
