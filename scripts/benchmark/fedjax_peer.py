"""Google's FedJAX: its federated averaging with clients one after another, each step compiled.

On one core, JAX computes in the thread that asks: handing a small step to another thread costs more than the step.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from fedjax.algorithms import fed_avg
from torch import Tensor

from scripts.benchmark.turns import Epochs, Job, load

Params = dict[str, jax.Array]


class Drawn(fedjax.ClientDataset):
    """A client's samples in the batches that ours draws; FedJAX's own would fill the last one up."""

    def __init__(self, job: Job, client: int) -> None:
        x, y = job.clients[client]
        # XLA likes the channels last.
        super().__init__({"x": (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy().copy(), "y": y.numpy()})
        self._epochs, self._num_epochs = Epochs(job, client), job.epochs

    def shuffle_repeat_batch(self, *_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        """Yield the batches of all epochs."""
        x, y = self.raw_examples["x"], self.raw_examples["y"]
        for _ in range(self._num_epochs):
            for rows in self._epochs:
                yield {"x": x[rows.numpy()], "y": y[rows.numpy()]}


def from_torch(state: dict[str, Tensor]) -> Params:
    """Return weights with the outputs last: matrices (in, out), convolutions (height, width, in, out)."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
    return {name: jnp.array(tensor.permute(order[tensor.ndim]).numpy()) for name, tensor in state.items()}


def to_torch(params: Params) -> dict[str, Tensor]:
    """Return weights as PyTorch has them."""
    order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
    return {name: torch.tensor(np.asarray(array)).permute(order[array.ndim]) for name, array in params.items()}


def outputs(params: Params, x: jax.Array) -> jax.Array:
    """Return the outputs of LeNet or of a chain of matrices, by what the weights are called."""
    layers = [name.removesuffix(".weight") for name in params if name.endswith(".weight")]
    for layer in layers:
        weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        if weight.ndim == 4:
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            continue
        if x.ndim == 4:
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = x @ weight + bias
        x = x if layer == layers[-1] else jax.nn.relu(x)
    return x


def loss(params: Params, batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs(params, batch["x"]), batch["y"]).mean()


def main(job: Job) -> None:
    clients = [Drawn(job, client) for client in range(len(job.clients))]
    fedjax.set_for_each_client_backend("jit")
    algorithm = fed_avg.federated_averaging(
        jax.jit(jax.grad(loss)),
        fedjax.optimizers.sgd(job.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=job.batch_size, num_epochs=job.epochs),
    )
    server, key = algorithm.init(from_torch(job.model.state_dict())), jax.random.PRNGKey(0)

    def state() -> dict[str, Tensor]:
        return to_torch(server.params)

    for server_round in job.rounds(state):
        cohort = job.cohorts[server_round - 1]
        key, *keys = jax.random.split(key, len(cohort) + 1)
        server, _ = algorithm.apply(server, [(i, clients[i], own) for i, own in zip(cohort, keys, strict=True)])
        jax.block_until_ready(server.params)


if __name__ == "__main__":
    if sys.argv[2] == "1":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    main(load(sys.argv[1], int(sys.argv[2])))
