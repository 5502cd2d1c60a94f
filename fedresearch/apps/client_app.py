"""The ClientApp: what a client does with a message."""

from collections.abc import Callable, Iterator

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedresearch.apps.records import (
    ARRAYS,
    CONFIG,
    EVAL_ACC,
    EVAL_LOSS,
    METRICS,
    NUM_EXAMPLES,
    NUM_STEPS,
    TRAIN_LOSS,
    load_arrays,
    number,
)
from fedresearch.data.federated import FederatedData
from fedresearch.local.objective import evaluate as evaluate_model
from fedresearch.local.train import Schedule
from fedresearch.local.train import train as train_model
from fedresearch.local.update import LocalUpdate
from fedresearch.seeding import derive_seed


def make_client_app(
    *,
    model: Module,
    data: FederatedData,
    update: LocalUpdate,
    optimizer: Callable[..., Optimizer],
    schedule: Schedule,
    seed: int,
) -> ClientApp:
    """Return the ClientApp that trains and evaluates on the partition that its node is given.

    Parameters
    ----------
    model : Module
        One instance, reused: each message brings the parameters.
    data : FederatedData
        All partitions; a client reads its own.
    update : LocalUpdate
        The client half of the strategy.
    optimizer : callable
        ``optimizer(parameters, lr=lr)``; the learning rate comes with the message, as ``config["lr"]``.
    schedule : Schedule
        Local epochs or steps, and batch size.
    seed : int
        The run's seed. A client's draws follow from it, the round and the partition.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition_id = int(context.node_config["partition-id"])
        config = message.content.config_records[CONFIG]
        where = (int(number(config, "server-round")), partition_id)
        x, y = data.train_samples(partition_id)
        load_arrays(model, message.content.array_records[ARRAYS])
        # A model's own draws (dropout) come from torch's global generator: seeded for this client, then put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "dropout", *where))
            loss, num_steps = train_model(
                model,
                x,
                y,
                update=update,
                config={key: value for key, value in config.items() if isinstance(value, int | float)},
                optimizer=_with_lr(optimizer, float(number(config, "lr"))),
                schedule=schedule,
                generator=torch.Generator().manual_seed(derive_seed(seed, "batches", *where)),
            )
        metrics = MetricRecord({TRAIN_LOSS: loss, NUM_STEPS: num_steps, NUM_EXAMPLES: len(y)})
        return Message(RecordDict({ARRAYS: ArrayRecord(model.state_dict()), METRICS: metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        x, y = data.validation_samples(int(context.node_config["partition-id"]))
        load_arrays(model, message.content.array_records[ARRAYS])
        loss, accuracy = evaluate_model(model, x, y)
        metrics = MetricRecord({EVAL_LOSS: loss, NUM_EXAMPLES: len(y)})
        if accuracy is not None:
            metrics[EVAL_ACC] = accuracy
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    return app


def _with_lr(optimizer: Callable[..., Optimizer], lr: float) -> Callable[[Iterator[Tensor]], Optimizer]:
    return lambda parameters: optimizer(parameters, lr=lr)
