"""The ClientApp: what a client does with a message."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Generator
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
    PERSONAL_ACC,
    PERSONAL_LOSS,
    TRAIN_LOSS,
    UNIFORM,
    number,
    tensors,
)
from fedresearch.data.federated import FederatedData
from fedresearch.local.objective import evaluate as evaluate_model
from fedresearch.local.parts import Names
from fedresearch.local.train import Schedule, Trained
from fedresearch.local.train import train as train_model
from fedresearch.local.update import LocalUpdate, Stage, Tensors
from fedresearch.seeding import derive_seed

# Records of a client's state: its parts of the global model, a model of its own, its optimizers; what the update keeps
# has the update's names behind a prefix.
_PARTS, _OWN, _KEPT = "parts", "own", "kept/"
_OPTIMIZER, _OWN_OPTIMIZER = "optimizer", "own-optimizer"


def make_client_app(
    *,
    model: Module,
    data: FederatedData,
    update: LocalUpdate,
    personal: Names,
    optimizer: Callable[..., Optimizer],
    schedule: Schedule,
    keep_optimizer_state: bool,
    seed: int,
) -> ClientApp:
    """Return the ClientApp that trains and evaluates on the partition that its node is given.

    Parameters
    ----------
    model : Module
        One instance with the initial weights, reused: each message brings the parameters.
    data : FederatedData
        All partitions; a client reads its own.
    update : LocalUpdate
        The client half of the strategy.
    personal : set of str
        What of the model's ``state_dict`` stays on the client, in its context's state.
    optimizer : callable
        ``optimizer(parameters, lr=lr)``; the learning rate comes with the message, as ``config["lr"]``.
    schedule : Schedule
        Local epochs or steps, and batch size.
    keep_optimizer_state : bool
        Whether a client's optimizer goes on from its state in the client's last round.
    seed : int
        The run's seed. A client's draws follow from it, the round and the partition.
    """
    app = ClientApp()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages, adaptation = update.stages(model), update.adaptation(model)
    adapts = any(stage.trained for stage in adaptation)
    has_own_model = bool(personal) or adapts or update.beside is not None

    def fit(
        message: Message,
        context: Context,
        start: Tensors,
        update: LocalUpdate,
        stages: Sequence[Stage],
        which: tuple[int, ...] = (),
        **options: Any,
    ) -> Trained:
        """Train the model from a start; ``which`` tells a round's trainings apart, ``options`` are those of train."""
        partition_id = int(context.node_config["partition-id"])
        config = message.content.config_records[CONFIG]
        where = (int(number(config, "server-round")), partition_id, *which)
        lr = float(number(config, "lr"))
        x, y = data.train_samples(partition_id)
        model.load_state_dict(start)
        # A model's own draws (dropout) come from torch's global generator: seeded for this client, then put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "dropout", *where))
            return train_model(
                model,
                x,
                y,
                update=update,
                stages=stages,
                config={key: value for key, value in config.items() if isinstance(value, int | float)},
                optimizer=lambda parameters: optimizer(parameters, lr=lr),
                schedule=schedule,
                generator=Generator().manual_seed(derive_seed(seed, "batches", *where)),
                **options,
            )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition_id = int(context.node_config["partition-id"])
        state, arrays = context.state, message.content.array_records
        start = initial | tensors(message.content, ARRAYS) | tensors(state, _PARTS)
        trained = fit(
            message,
            context,
            start,
            update,
            stages,
            received={name: tensors(message.content, name) for name in arrays if name != ARRAYS},
            kept={name.removeprefix(_KEPT): tensors(state, name) for name in state if name.startswith(_KEPT)},
            optimizer_state=tensors(state, _OPTIMIZER) if keep_optimizer_state else None,
        )
        num_steps, after = trained.num_steps, model.state_dict()
        content = RecordDict({ARRAYS: ArrayRecord({k: v for k, v in after.items() if k not in personal})})
        for name, group in trained.sent.items():
            content[name] = ArrayRecord(dict(group))
        if personal:
            state[_PARTS] = ArrayRecord({k: v for k, v in after.items() if k in personal})
        for name, group in trained.kept.items():
            state[_KEPT + name] = ArrayRecord(dict(group))
        if keep_optimizer_state:
            state[_OPTIMIZER] = ArrayRecord(dict(trained.optimizer_state))
        if update.beside is not None:
            anchor = {name: start[name] for name, _ in model.named_parameters()}
            own = fit(
                message,
                context,
                start | tensors(state, _OWN),
                update.beside,
                update.beside.stages(model),
                (1,),
                anchor=anchor,
                optimizer_state=tensors(state, _OWN_OPTIMIZER) if keep_optimizer_state else None,
            )
            num_steps += own.num_steps
            state[_OWN] = ArrayRecord(model.state_dict())
            if keep_optimizer_state:
                state[_OWN_OPTIMIZER] = ArrayRecord(dict(own.optimizer_state))
        num_examples = len(data.train_samples(partition_id)[1])
        content[METRICS] = MetricRecord(
            {TRAIN_LOSS: trained.loss, NUM_STEPS: num_steps, NUM_EXAMPLES: num_examples, UNIFORM: 1}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition_id = int(context.node_config["partition-id"])
        x, y = data.validation_samples(partition_id)
        received = initial | tensors(message.content, ARRAYS)
        metrics = MetricRecord({NUM_EXAMPLES: len(y), UNIFORM: 1})

        def measure(loss_key: str, accuracy_key: str) -> None:
            metrics[loss_key], accuracy = evaluate_model(model, x, y)
            if accuracy is not None:
                metrics[accuracy_key] = accuracy

        model.load_state_dict(received)
        measure(EVAL_LOSS, EVAL_ACC)
        if has_own_model:
            own = received | tensors(context.state, _PARTS) | tensors(context.state, _OWN)
            if adapts and len(data.train_samples(partition_id)[1]):
                fit(message, context, own, LocalUpdate(), adaptation, (2,))
            else:
                model.load_state_dict(own)
            measure(PERSONAL_LOSS, PERSONAL_ACC)
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    return app
