"""The ClientApp: how a client answers a message."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedresearch.channel.stage import Where
from fedresearch.data.federated import FederatedData
from fedresearch.federation.availability import Availability
from fedresearch.federation.channel import Channel
from fedresearch.federation.records import (
    ARRAYS,
    EVAL_LOSS,
    METRICS,
    NUM_EXAMPLES,
    NUM_STEPS,
    PERSONAL,
    SERVER_ROUND,
    TRAIN_LOSS,
    UNIFORM,
    array_record,
    arrays_of,
    config_of,
    is_finite,
    tensor_record,
    tensors,
)
from fedresearch.federation.stack import StackedReplies
from fedresearch.local.generators import seeded_for_client
from fedresearch.local.inputs import Inputs
from fedresearch.local.objective import Metrics, evaluate
from fedresearch.local.state_names import Names, parameters
from fedresearch.local.train import LocalTrainer, LocalWork, Task, Trained
from fedresearch.local.transforms import Transform
from fedresearch.local.update import LocalUpdate, Tensors
from fedresearch.seeding import Seeds, derive_seed

# Records of a client's state: its personal parts of the global model, its own second model, its optimizers. What the
# update or a stage of the channel keeps has their names behind a prefix.
_PARTS, _OWN, _KEPT, _OF_CHANNEL = "parts", "own", "kept/", "channel/"
_OPTIMIZER, _OWN_OPTIMIZER = "optimizer", "own-optimizer"


# Trains a model in place on tasks together, and returns their results in the tasks' order.
Trainer = Callable[..., Iterable[Trained]]


def own_arrays(state: RecordDict) -> ArrayRecord:
    """Return the arrays of a client's own model that it keeps; all others are the global model's."""
    kept = (state.array_records[key] for key in (_PARTS, _OWN) if key in state)
    return ArrayRecord({name: array for record in kept for name, array in record.items()})


class Client(NamedTuple):
    """A client of a round: its partition and its state, which nobody writes into."""

    partition_id: int
    state: RecordDict


class _Own(NamedTuple):
    """What the training of a client's own model leaves."""

    kept: Mapping[str, ArrayRecord] = MappingProxyType({})
    num_steps: int = 0


_NOTHING = _Own()


class _Received(NamedTuple):
    """What a message carries: the model from which a client starts, the other arrays, and the numbers."""

    start: Tensors
    records: dict[str, dict[str, Tensor]]
    config: Mapping[str, float]
    server_round: int


class Result(NamedTuple):
    """What a client sends, its model as the trained tensors, and the records that it keeps."""

    arrays: dict[str, Tensor]
    sent: dict[str, dict[str, NDArray[Any]]]
    metrics: dict[str, float]
    kept: dict[str, ArrayRecord]

    @property
    def is_finite(self) -> bool:
        """Whether all that the client sends is finite.

        Otherwise it keeps its earlier state, as a client that failed: no later update of it would be finite.
        """
        sent = (array for group in self.sent.values() for array in group.values())
        found = [tensor.isfinite().all() for tensor in self.arrays.values()]
        return all(map(bool, found)) and all(bool(np.isfinite(array).all()) for array in sent)


def put_result(client: Client, result: Result, stack: StackedReplies, place: int) -> dict[int, RecordDict]:
    """Put what a client sends into a stack; return its new state by its partition id, if it keeps something."""
    stack.put(place, result.arrays, result.sent, result.metrics)
    if result.kept and result.is_finite:
        return {client.partition_id: RecordDict({**client.state, **result.kept})}
    return {}


def put_results(
    clients: Sequence[Client], results: Iterable[Result], stack: StackedReplies, first: int = 0
) -> dict[int, RecordDict]:
    """Put what clients send into a stack, from a place on; return by partition id the new states of those that keep."""
    states: dict[int, RecordDict] = {}
    for place, (client, result) in enumerate(zip(clients, results, strict=True), first):
        states |= put_result(client, result, stack, place)
    return states


def _channel_records(states: Mapping[str, Tensors]) -> dict[str, ArrayRecord]:
    return {_OF_CHANNEL + name: tensor_record(state) for name, state in states.items()}


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


class Clients(ClientApp):
    """The ClientApp that trains and evaluates on the partition of its node.

    Parameters
    ----------
    model : Module
        One instance with the initial weights. It is reused: each message carries the parameters.
    data : FederatedData
        All partitions; each client reads its own.
    update : LocalUpdate
        The client half of the strategy.
    personal : set of str
        Names in the model's ``state_dict`` that stay on the client, in its context's state.
    optimizer : callable
        ``optimizer(parameters, lr=lr)``; the message carries the learning rate as ``config["lr"]``.
    work : LocalWork
        Local epochs or steps, and batch size.
    availability : Availability
        The share of this work that a client does in a round.
    keep_optimizer_state : bool
        Whether a client's optimizer continues from its state after the client's last round.
    metrics : mapping of str to callable
        What is measured in an evaluation besides the loss.
    seed : int
        The run's seed. A client's draws are a function of it, the round and the partition.
    channel : Channel, optional
        What a client's update passes through; None: nothing.
    transforms : sequence of Transform
        What becomes of samples before they are a model's inputs, in their order.

    Attributes
    ----------
    has_own_model : bool
        Whether clients have their own models, which are then the run's result: because they keep parts of the model,
        train before they evaluate, or train a second model.
    keeps_own_model : bool
        Whether :func:`own_arrays` returns these models from the clients' states: not those that are trained for an
        evaluation.
    """

    def __init__(
        self,
        *,
        model: Module,
        data: FederatedData,
        update: LocalUpdate,
        personal: Names,
        optimizer: Callable[..., Optimizer],
        work: LocalWork,
        availability: Availability,
        keep_optimizer_state: bool,
        metrics: Metrics,
        seed: int,
        channel: Channel | None = None,
        transforms: Sequence[Transform] = (),
    ) -> None:
        super().__init__()
        self._remake = functools.partial(
            Clients,
            model=model,
            data=data.without_test(),
            update=update,
            personal=personal,
            optimizer=optimizer,
            work=work,
            availability=availability,
            keep_optimizer_state=keep_optimizer_state,
            metrics=metrics,
            seed=seed,
            channel=channel,
            transforms=transforms,
        )
        self.model, self.data, self.update, self.personal = model, data, update, personal
        self.parameters = parameters(model)
        self.optimizer, self.work, self.channel = optimizer, work, channel or Channel()
        self.availability = availability
        self.keeps_optimizer_state = keep_optimizer_state
        self._metrics, self.seed = metrics, seed
        self._local = LocalTrainer(model, optimizer, work)
        self.inputs = Inputs(data.prepare, transforms)
        self._initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.stages = update.stages(model)
        self._own_model_stages = update.own_model.stages(model) if update.own_model else ()
        self._adaptation = [stage for stage in update.adaptation(model) if stage.trained]
        self._last_read: tuple[RecordDict | None, _Received | None] = None, None
        self.has_own_model = bool(personal or self._adaptation or update.own_model)
        self.keeps_own_model = self.has_own_model and not self._adaptation
        super().train()(lambda message, context: self.train_clients([message], [context])[0])
        super().evaluate()(self._evaluate)

    @property
    def stacks(self) -> bool:
        """Whether :meth:`train_stacked` trains the clients: no stage of the channel needs messages."""
        return self.channel.takes_rows

    def train_clients(
        self, messages: Sequence[Message], contexts: Sequence[Context], trainer: Trainer | None = None
    ) -> list[Message]:
        """Return the clients' replies to a round's training messages; the contexts receive what the clients keep.

        Without a trainer, they train one after another.
        """
        clients = [Client(int(context.node_config["partition-id"]), context.state) for context in contexts]
        results = self._train([message.content for message in messages], clients, trainer)
        replies = []
        for message, context, client, result in zip(messages, contexts, clients, results, strict=True):
            content = RecordDict({ARRAYS: tensor_record(result.arrays)})
            for name, group in result.sent.items():
                content[name] = array_record(group)
            content[METRICS] = MetricRecord(dict(result.metrics))
            kept, keeps = dict(result.kept), result.is_finite
            if self.channel.stages:
                received = self._read(message.content)
                where = Where(received.server_round, client.partition_id)
                new = self.channel.encode(content, received.start, where, self._groups(client.state, _OF_CHANNEL))
                kept |= _channel_records(new)
                keeps = keeps and is_finite(content)
            if keeps:
                context.state.update(kept)
            replies.append(Message(content, reply_to=message))
        return replies

    def train_stacked(
        self,
        content: RecordDict,
        clients: Sequence[Client],
        stack: StackedReplies,
        first: int = 0,
        trainer: Trainer | None = None,
    ) -> dict[int, RecordDict]:
        """Put the clients' replies to a content into a stack, and return the new states of those that keep something.

        Parameters
        ----------
        content : RecordDict
            What all clients receive.
        clients : sequence of Client
            The clients.
        stack : StackedReplies
            Receives their replies, from the place ``first`` on.
        trainer : callable, optional
            Trains them; None: they train one after another.

        Returns
        -------
        dict
            The states by partition id.
        """
        results = self._train([content] * len(clients), clients, trainer)
        return put_results(clients, results, stack, first)

    def pass_channel(
        self, content: RecordDict, clients: Sequence[Client], stack: StackedReplies
    ) -> list[dict[str, ArrayRecord] | None]:
        """Pass the updates in a stack through the channel, and return what each client keeps of it.

        None of a client whose numbers are not all finite, as :attr:`Result.is_finite`.
        """
        server_round = self._read(content).server_round
        where = [Where(server_round, client.partition_id) for client in clients]
        states = [self._groups(client.state, _OF_CHANNEL) for client in clients]
        kept = self.channel.pass_rows(stack, arrays_of(content), where, states)
        return [None if own is None else _channel_records(own) for own in kept]

    def train_in_turn(self, content: RecordDict, clients: Sequence[Client]) -> Iterator[Result]:
        """Yield what clients send and keep, which must be read before the next one is requested."""
        return self._train([content] * len(clients), clients, None)

    def _train(
        self, contents: Sequence[RecordDict], clients: Sequence[Client], trainer: Trainer | None
    ) -> Iterator[Result]:
        """Yield what clients send and keep; each result must be read before the next one is requested."""
        if trainer is None:  # then one client's state is read at a time
            for content, client in zip(contents, clients, strict=True):
                task, own = self._task_of(content, client), [_NOTHING]
                if self.update.own_model:
                    own = self._train_own([content], [client], [task], None)
                yield self.result(task, self._local(task), *own)
            return
        tasks = self.tasks(contents, clients)
        own = self._train_own(contents, clients, tasks, trainer) if self.update.own_model else [_NOTHING] * len(tasks)
        for task, trained, beside in zip(tasks, self._run(trainer, tasks), own, strict=True):
            yield self.result(task, trained, beside)

    def tasks(self, contents: Sequence[RecordDict], clients: Sequence[Client]) -> list[Task]:
        """Return the clients' trainings of the global model, each of which starts from a content."""
        return [self._task_of(content, client) for content, client in zip(contents, clients, strict=True)]

    def _task_of(self, content: RecordDict, client: Client) -> Task:
        received, state = self._read(content), client.state
        start, kept = received.start, dict[str, dict[str, Tensor]]()
        if state:
            start, kept = {**start, **self._tensors(state, _PARTS)}, self._groups(state, _KEPT)
        return self._task(
            received,
            client.partition_id,
            start,
            update=self.update,
            stages=self.stages,
            received=received.records,
            kept=kept,
            optimizer_state=self._optimizer_state(state, _OPTIMIZER),
        )

    def _train_own(
        self, contents: Sequence[RecordDict], clients: Sequence[Client], tasks: Sequence[Task], trainer: Trainer | None
    ) -> list[_Own]:
        """Train the clients' own models."""
        own = [
            self._task(
                self._read(content),
                client.partition_id,
                {**task.start, **self._tensors(client.state, _OWN)},
                1,
                update=self.update.own_model,
                stages=self._own_model_stages,
                anchor=task.start,
                optimizer_state=self._optimizer_state(client.state, _OWN_OPTIMIZER),
            )
            for content, client, task in zip(contents, clients, tasks, strict=True)
        ]
        results = []
        for trained in self._run(trainer, own):
            kept = {_OWN: tensor_record(trained.state)}
            if self.keeps_optimizer_state:
                kept[_OWN_OPTIMIZER] = tensor_record(trained.optimizer_state)
            results.append(_Own(kept, trained.num_steps))
        return results

    def __reduce__(self) -> tuple[Callable[[], "Clients"], tuple[()]]:
        """Pickle the arguments, since the routes are closures. A copy starts with the initial weights."""
        self.model.load_state_dict(self._initial)
        return self._remake, ()

    def to(self, device: str) -> "Clients":
        """Return the same ClientApp on a device."""
        return self._remake(model=self.model.to(device), data=self.data.to(device))

    def in_double(self, work: LocalWork) -> "Clients":
        """Return a ClientApp with a copy of the model and with samples in double precision, for some work."""
        return self._remake(model=copy.deepcopy(self.model).double(), data=self.data.in_double(), work=work)

    def cost(self, partition_id: int) -> int:
        """Return the relative time that a client takes: its number of samples."""
        return len(self.data.train[partition_id]) + len(self.data.validation[partition_id])

    def _read(self, content: RecordDict) -> _Received:
        """Return what a content carries. The messages of a round share one, which is decoded once."""
        if content is not self._last_read[0]:
            records = {name: self._tensors(content, name) for name in content.array_records}
            config = {key: value for key, value in config_of(content).items() if isinstance(value, int | float)}
            read = _Received(self._initial | records.pop(ARRAYS), records, config, int(config[SERVER_ROUND]))
            self._last_read = content, read
        assert self._last_read[1] is not None
        return self._last_read[1]

    def _tensors(self, records: RecordDict, key: str) -> dict[str, Tensor]:
        """Return the arrays at a key as tensors on the device of the samples."""
        return {name: tensor.to(self.data.x.device) for name, tensor in tensors(records, key).items()}

    def _groups(self, records: RecordDict, prefix: str) -> dict[str, dict[str, Tensor]]:
        """Return the arrays at all keys with a prefix, by the rest of the key."""
        return {key.removeprefix(prefix): self._tensors(records, key) for key in records if key.startswith(prefix)}

    def _task(self, carried: _Received, partition_id: int, start: Tensors, *purpose: int, **options: Any) -> Task:
        """Return a client's task; ``purpose`` separates the draws of one round's tasks, ``options`` are the task's."""
        server_round = carried.server_round
        x, y = self.data.train_samples(partition_id)
        return Task(
            start=start,
            x=x,
            y=y,
            config=carried.config,
            seed_of=Seeds(self.seed, server_round, partition_id, *purpose),
            server_round=server_round,
            partition_id=partition_id,
            inputs=self.inputs,
            share=self.availability(server_round, partition_id),
            **options,
        )

    def _run(self, trainer: Trainer | None, tasks: Sequence[Task]) -> Iterable[Trained]:
        if trainer is None:  # each result must be read before the next task is trained
            return map(self._local, tasks)
        return trainer(tasks, self.model, optimizer=self.optimizer, work=self.work)

    def _optimizer_state(self, state: RecordDict, key: str) -> Tensors | None:
        return self._tensors(state, key) if self.keeps_optimizer_state else None

    def result(self, task: Task, trained: Trained, own: _Own = _NOTHING) -> Result:
        """Return what a client sends and keeps."""
        end = trained.end
        sent = {**trained.state, **{name: tensor.detach() for name, tensor in end.params.items()}}
        metrics = {
            TRAIN_LOSS: trained.loss,
            NUM_STEPS: trained.num_steps + own.num_steps,
            NUM_EXAMPLES: task.y.shape[0],
            UNIFORM: 1,
        }
        for name, value in end.metrics.items():
            if name in metrics:
                raise ValueError(f"the metric {name} exists already; rename it")
            metrics[name] = float(value)
        kept = {_KEPT + name: tensor_record(group) for name, group in end.kept.items()}
        if self.personal:
            kept[_PARTS] = tensor_record({k: v for k, v in trained.state.items() if k in self.personal})
        if self.keeps_optimizer_state:
            kept[_OPTIMIZER] = tensor_record(trained.optimizer_state)
        return Result(
            {name: tensor for name, tensor in sent.items() if name not in self.personal} if self.personal else sent,
            {name: {key: _numpy(tensor) for key, tensor in group.items()} for name, group in end.sent.items()},
            metrics,
            {**kept, **own.kept},
        )

    def _evaluate(self, message: Message, context: Context) -> Message:
        partition_id = int(context.node_config["partition-id"])
        x, y = self.data.validation_samples(partition_id)
        received = self._read(message.content)
        metrics = MetricRecord({NUM_EXAMPLES: len(y), UNIFORM: 1})

        def measure() -> dict[str, float]:
            with seeded_for_client(x.device, derive_seed(self.seed, "evaluate", partition_id)):
                return evaluate(self.model, x, y, self.inputs.prepare, self._metrics)

        self.model.load_state_dict(received.start)
        measured = measure()
        metrics[EVAL_LOSS] = measured.pop("loss")
        metrics.update(measured)
        if self.has_own_model:
            own = {**received.start, **self._tensors(context.state, _PARTS), **self._tensors(context.state, _OWN)}
            if self._adaptation and len(self.data.train_samples(partition_id)[1]):
                task = self._task(received, partition_id, own, 2, update=LocalUpdate(), stages=self._adaptation)
                self._local(task._replace(share=1.0))
            else:
                self.model.load_state_dict(own)
            metrics.update({PERSONAL + name: value for name, value in measure().items()})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)
