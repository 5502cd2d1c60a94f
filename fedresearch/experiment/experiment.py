"""An experiment's objects, from its config."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from fedresearch.channel.stage import ChannelStage
from fedresearch.config.cohorts import cohort_size, shortages
from fedresearch.config.input_shape import input_shape
from fedresearch.config.metrics import unfit
from fedresearch.config.schema import Config
from fedresearch.data.facts import Facts, gather_facts
from fedresearch.data.federated import FederatedData
from fedresearch.data.source import Rows
from fedresearch.errors import InputError
from fedresearch.experiment.builder import Builder
from fedresearch.experiment.loading import load_source, partition
from fedresearch.experiment.model import build_model, fastest_memory_format
from fedresearch.federation import flower
from fedresearch.federation.availability import Availability
from fedresearch.federation.buffers import SeparateBuffers
from fedresearch.federation.channel import Channel
from fedresearch.federation.client_app import Clients
from fedresearch.federation.generators import seeded_generators
from fedresearch.federation.hooks import Hooks, disable_waiting, nested_strategies
from fedresearch.federation.measures import Columns, Row
from fedresearch.federation.nodes import NodeGrid
from fedresearch.federation.records import LR, NUM_CLIENTS
from fedresearch.federation.rounds import RoundLoop
from fedresearch.federation.sampling import Sampling
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.hardware.threads import be_deterministic
from fedresearch.local.inputs import Inputs
from fedresearch.local.metrics import confusion
from fedresearch.local.objective import Metrics, evaluate
from fedresearch.local.state_names import Names, buffers, first_names, parameters
from fedresearch.local.train import LocalWork
from fedresearch.local.transforms import Fixed, Transform
from fedresearch.local.update import LocalUpdate
from fedresearch.runs.columns import COLUMNS, Column, Declared, declared, evaluated, of_strategy
from fedresearch.seeding import derive_seed
from fedresearch.tracking.tracker import Tracker

T = TypeVar("T")

_GIVEN_TO_SAMPLING = ("sizes", "eligible", "cohort_size", "server_round", "seed")


class Experiment:
    """An experiment's parts, each built at its first use and only once.

    Parameters
    ----------
    config : Config
        The checked config.
    choices : mapping
        Config group to chosen option, for messages and names.
    nodes : NodeGrid, optional
        SuperNodes that wait for the experiment; None: the config's hardware.
    rows : tuple of two sequences of ndarray, optional
        The rows that each client trains on and validates on, if they are known; None: from the partitioner.
    """

    def __init__(
        self,
        config: Config,
        choices: Mapping[str, str | None],
        nodes: NodeGrid | None = None,
        rows: tuple[Sequence[Rows], Sequence[Rows]] | None = None,
    ) -> None:
        flower.check_version()
        flower.quieten()
        self.config = config
        self.choices = choices
        self.name = config.name or "-".join(
            str(choices[group]) for group in ("dataset", "partitioner", "model", "strategy")
        )
        self.builder = Builder(choices)
        self._nodes = nodes
        self._rows = rows

    @cached_property
    def data(self) -> FederatedData:
        """The partitioned dataset."""
        source = load_source(self.config, self.choices, self.builder)
        rows = self._rows or partition(self.config, self.builder, source)
        data = FederatedData.build(source, *rows, getattr(torch, self.config.dtype))
        return data.to(self.device, self._memory_format(self.model))

    @cached_property
    def facts(self) -> Facts:
        """Facts about the data that readers of the run need."""
        return gather_facts(self.data)

    @cached_property
    def training_data(self) -> FederatedData:
        """The clients' data; if the strategy pools it, all training data is on the first client."""
        return self.data.pooled() if self.config.strategy["pooled"] else self.data

    @cached_property
    def model(self) -> Module:
        """The model with its initial weights, which follow from the run's seed alone."""
        with seeded_generators(derive_seed(self.config.seed, "initial-weights")):
            model = build_model(self.config, self.choices)
        return model.to(self.device).to(memory_format=self._memory_format(model))

    @cached_property
    def strategy(self) -> Strategy:
        """The server half of the strategy."""
        return self.new_strategy()

    @cached_property
    def update(self) -> LocalUpdate:
        """The client half of the strategy."""
        return self.builder.build("strategy", self.config.strategy["client"], LocalUpdate, "strategy.client")

    @cached_property
    def personal(self) -> Names:
        """The names in the model's ``state_dict`` that stay on the clients."""
        personal: Names = self.builder.build("strategy", self.update.personal, frozenset, model=self.model)
        return personal | buffers(self.model) if self.config.strategy["buffers"] == "local" else personal

    def new_channel(self) -> Channel:
        """Return what the clients' updates pass through, before any round."""
        stages = self._listed("channel", self.config.channel, ChannelStage)
        return Channel(stages, first_names(self.model), self.config.seed)

    @cached_property
    def channel(self) -> Channel:
        """The server's side of the channel."""
        return self.new_channel()

    @cached_property
    def metrics(self) -> Metrics:
        """The chosen metrics that fit the targets."""
        left_out = unfit(self.config)
        return {
            name: Builder({"metrics": name}).partial("metrics", node, ("outputs", "targets"), f"metrics.{name}")
            for name, node in self.config.metrics.items()
            if name not in left_out
        }

    @cached_property
    def measured(self) -> list[str]:
        """The names of what an evaluation measures besides the loss, found out on two samples."""
        names: list[str] = []
        samples = self.data.test_x[:2], self.data.test_y[:2]

        def measure(metrics: Metrics) -> Row:
            with seeded_generators(0):
                return evaluate(self.model, *samples, self.inputs.prepare, metrics)

        for name, metric in self.metrics.items():
            first, second = (
                Builder({"metrics": name}).build("metrics", measure, dict, metrics={name: metric}) for _ in range(2)
            )
            if repr(first) != repr(second) and self.device.type == "cpu":
                raise InputError(
                    f"metrics={name}: the same samples have {first} and then {second}: the metric, or "
                    f"model={self.choices['model']}, keeps a value or changes what it was given in place; compute with "
                    "a copy, as in x = x - 1 and not x -= 1"
                )
            names += first
        return [name for name in names if name != "loss"]

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns of numbers that the run's rows have, but for what a strategy measures and does not declare."""
        strategy = self.config.strategy.get("declares", {}).get("metrics", {})
        columns = [
            *COLUMNS,
            *(column for name in self.measured for column in evaluated(name, self._declares(name))),
            *(of_strategy(name, declares) for name, declares in strategy.items()),
        ]
        holds = {
            "validation": self.config.federation.fraction_evaluate > 0,
            "own models": self.client_app.has_own_model,
            "drop": self.config.federation.nonfinite == "drop",
            "train evaluation": self.config.federation.evaluate_train,
        }
        return {
            column.name: column
            for column in columns
            if column.unit != "text" and all(holds.get(need, True) for need in column.needs)
        }

    @property
    def declared_columns(self) -> Declared:
        """Those of the columns that not every run has, as its record declares them."""
        return declared(self.columns.values())

    def _declares(self, measured: str) -> Mapping[str, Any]:
        """Return what the option of a metric, or of a list's entry, declares."""
        declares: Mapping[str, Any] = self.config.metrics[measured.partition("/")[0]]["declares"]
        return declares

    @property
    def main_metric(self) -> str:
        """What the run's best round is best by, unless it is named."""
        return next((name for name in self.measured if "/" not in name), "loss")

    @cached_property
    def client_app(self) -> Clients:
        """The ClientApp."""
        local = self.config.local
        return self.new_client_app(
            self.model, self.training_data, LocalWork(local.epochs, local.steps, local.batch_size)
        )

    @cached_property
    def grid(self) -> OrderedGrid | NodeGrid:
        """Where the clients run."""
        if self._nodes:
            return self._nodes
        grid = self.builder.build(
            "hardware",
            {key: value for key, value in self.config.hardware.items() if key != "device"},
            OrderedGrid,
            client_app=self.client_app,
            num_supernodes=self.data.num_partitions,
        )
        grid.expect(self.config.federation.num_rounds, self.cohort_size)
        return grid

    @property
    def hardware(self) -> str | None:
        """The option on which the clients run; ``hardware=auto`` chooses one when the grid opens."""
        return getattr(self.grid, "chosen", self.choices["hardware"])

    @cached_property
    def initial_arrays(self) -> ArrayRecord:
        """The initial global model: the shared part of the model."""
        return ArrayRecord({k: v for k, v in self._initial_state.items() if k not in self.personal})

    @cached_property
    def transforms(self) -> Sequence[Transform]:
        """What becomes of samples before they are a model's inputs, in their order."""
        made: list[Transform] = []
        for name, node in self.config.transform.items():
            builder, key = Builder({"transform": name}), f"transform.{name}"
            if "declares" in node:
                made.append(Fixed(builder.partial("transform", node, ("x",), key), node["declares"]["input_shape"]))
            else:
                made.append(builder.build("transform", node, Transform, key))
        return made

    @cached_property
    def inputs(self) -> Inputs:
        """Makes the model's inputs of samples, of the declared shape."""
        inputs, declared = Inputs(self.data.prepare, self.transforms), input_shape(self.config)
        one = self.builder.build("transform", inputs.prepare, Tensor, samples=self.data.test_x[:1])
        if list(one.shape) != [1, *declared]:
            raise InputError(
                f"transform={self.choices['transform']}: inputs must have the shape {declared} that is declared, got "
                f"{list(one.shape[1:])}; see transform.NAME.declares.input_shape in its YAML"
            )
        return inputs

    def _listed(self, group: str, section: Mapping[str, Any], kind: type[T]) -> dict[str, T]:
        """Return what the chosen options of a group that takes a list describe, by their names."""
        return {name: self.builder.build(group, node, kind, f"{group}.{name}") for name, node in section.items()}

    @cached_property
    def tracker(self) -> Tracker:
        """The chosen tracker."""
        return self.builder.build("tracker", self.config.tracker, Tracker)

    def round_loop(
        self,
        log_row: Callable[[Row, ArrayRecord], None],
        log_failure: Callable[[int, int, str, str], None],
        log_clients: Callable[[int, dict[str, Columns]], None] | None = None,
    ) -> RoundLoop:
        """Return the round loop.

        Parameters
        ----------
        log_row : callable
            Called with each round's row and its new global arrays.
        log_failure : callable
            Called with the round, the partition id, the client's task and its error.
        log_clients : callable, optional
            Called with each round and its columns of the clients' table; None: the table is not measured.
        """
        federation = self.config.federation
        return RoundLoop(
            hooks=Hooks(self.strategy, self.config.seed),
            num_rounds=federation.num_rounds,
            train_cohort=self._cohort,
            evaluate_cohort=self.evaluate_cohort,
            num_available=lambda server_round: len(self.available(server_round)),
            target_accuracy=federation.target_accuracy,
            evaluate_initial=federation.evaluate_initial,
            evaluate_every=federation.evaluate_every,
            parameters=parameters(self.model),
            shortage=lambda num_clients: ", ".join(needed for needed, _ in self.shortages(num_clients)),
            client_config=self.client_config,
            evaluate=self.evaluate,
            metrics={name: self._declares(name)["direction"] for name in self.measured},
            weighted_by=self.config.strategy["weighted_by"],
            log=log_row,
            log_clients=log_clients,
            max_failures=federation.max_failures,
            nonfinite=federation.nonfinite,
            log_failure=log_failure,
            channel=self.channel,
        )

    def state_dict(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Return the whole model for global arrays, with initial values for the part that is not shared."""
        return self._initial_state | dict(arrays.to_torch_state_dict())

    def evaluate(self, arrays: ArrayRecord) -> Row:
        """Return the loss of global arrays on the test split, what else is measured there, and the training loss.

        The loss on all training data, the objective of McMahan et al. 2017 (arXiv:1602.05629, Equation 1), is measured
        with ``federation.evaluate_train``.
        """
        self.model.load_state_dict(self.state_dict(arrays))
        with seeded_generators(derive_seed(self.config.seed, "evaluate")):  # some models use dropout in evaluation too
            measured = evaluate(self.model, self.data.test_x, self.data.test_y, self.inputs.prepare, self.metrics)
            row = {f"eval/{name}": value for name, value in measured.items()}
            if self.config.federation.evaluate_train:
                clients = [self.data.train_samples(i) for i in range(self.data.num_partitions)]
                sums = [evaluate(self.model, x, y, self.inputs.prepare)["loss"] * len(y) for x, y in clients if len(y)]
                row["train/global_loss"] = sum(sums) / sum(len(y) for _, y in clients)
        return row

    def confusion(self, arrays: ArrayRecord) -> list[list[int]] | None:
        """Return how many test samples of each class (rows) global arrays take for each class (columns).

        None if a target is not one class, or if parts of the model stay on the clients.
        """
        if self.personal or self.data.test_y.is_floating_point() or self.data.test_y.ndim > 1:
            return None
        self.model.load_state_dict(self.state_dict(arrays))
        counts: list[Tensor] = []

        def measure(outputs: Tensor, targets: Tensor) -> float:
            counts.append(confusion(outputs, targets))
            return 0.0

        with seeded_generators(derive_seed(self.config.seed, "evaluate")):
            evaluate(self.model, self.data.test_x, self.data.test_y, self.inputs.prepare, {"confusion": measure})
        return counts[0].long().tolist()

    @cached_property
    def device(self) -> torch.device:
        """The device of models and data; on a GPU, this makes torch deterministic."""
        device = torch.device(self.config.hardware.get("device", "cpu"))
        if device.type == "cuda":
            if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
                raise InputError(
                    f"hardware.device={device} needs a GPU that torch can use, got "
                    f"{torch.cuda.device_count()} with torch {torch.__version__}; try hardware=cpu or hardware=workers"
                )
            be_deterministic(tf32=self.config.precision == "tf32")
        return device

    def _memory_format(self, model: Module) -> torch.memory_format:
        if self.config.memory_format == "auto":
            return fastest_memory_format(model, self.device)
        return {"contiguous": torch.preserve_format, "channels_last": torch.channels_last}[self.config.memory_format]

    @cached_property
    def _initial_state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @property
    def cohort_size(self) -> int:
        """Number of clients that a round asks for."""
        return cohort_size(self.data.num_partitions, self.config.federation.fraction_train)

    @cached_property
    def train_cohort(self) -> Sampling:
        """The clients that the sampling scheme selects to train in a round, of those who are there."""
        return Sampling(
            self.builder.partial("sampling", self.config.sampling, given=_GIVEN_TO_SAMPLING),
            [len(rows) for rows in self.training_data.train],
            self.cohort_size,
            self.config.seed,
            "train-sampling",
            self.availability,
        )

    def available(self, server_round: int) -> Sequence[int]:
        """Return the clients that could train in a round."""
        return self.builder.build("availability", self.train_cohort.eligible, Sequence, server_round=server_round)

    def sampled(self, server_round: int) -> Sequence[int]:
        """Return the clients that the sampling scheme selects to train in a round, maybe some of them twice."""
        return self.builder.build("sampling", self.train_cohort, Sequence, server_round=server_round)

    @cached_property
    def evaluate_cohort(self) -> Sampling:
        """The clients that evaluate a round's model, whether they are there to train or not."""
        fraction = self.config.federation.fraction_evaluate
        return Sampling(
            self.builder.partial("evaluate_sampling", self.config.evaluate_sampling, given=_GIVEN_TO_SAMPLING),
            [len(rows) for rows in self.data.validation],
            cohort_size(self.data.num_partitions, fraction) if fraction else 0,
            self.config.seed,
            "evaluate-sampling",
        )

    @cached_property
    def availability(self) -> Availability:
        """Each client's share of its work in a round."""
        given = ("partition_id", "server_round", "seed")
        function = self.builder.partial("availability", self.config.availability, given=given)
        return Availability(function, self.config.seed)

    def _cohort(self, server_round: int) -> Sequence[int]:
        """Return the clients that train in a round. A rule that scores clients has each once: twins are nearest."""
        sampled = self.sampled(server_round)
        return sorted(set(sampled)) if "min_cohort" in self.config.strategy else sampled

    def shortages(self, num_clients: int) -> list[tuple[str, str]]:
        """Return why the strategy's rule needs more clients, and an override that would help, for each reason."""
        return [*shortages(self.config.strategy, num_clients)]

    @cached_property
    def num_clients(self) -> int:
        """Number of clients with samples to train on."""
        return sum(len(rows) > 0 for rows in self.training_data.train)

    @cached_property
    def optimizer(self) -> Callable[..., Optimizer]:
        """Makes a client's optimizer, given its parameters and ``lr``."""
        options = {k: v for k, v in self.config.optimizer.items() if k not in ("lr", "schedule")}
        return self.builder.partial("optimizer", options, given=("params",))

    @cached_property
    def _learning_rate(self) -> Callable[..., float]:
        return self.builder.partial(
            "schedule", self.config.optimizer["schedule"], given=("lr", "server_round", "num_rounds")
        )

    def sampling_sha256(self) -> str:
        """Return the SHA-256 of the cohorts of rounds 1 to 10, for any number of rounds."""
        cohorts = [sorted(map(int, self.sampled(server_round))) for server_round in range(1, 11)]
        return hashlib.sha256(json.dumps(cohorts).encode()).hexdigest()

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round."""
        lr = float(
            self.builder.build(
                "schedule",
                self._learning_rate,
                Real,
                lr=float(self.config.optimizer["lr"]),
                server_round=server_round,
                num_rounds=self.config.federation.num_rounds,
            )
        )
        if not 0 < lr < 1e38:  # within float32
            raise InputError(
                f"schedule={self.choices['schedule']}: the learning rate must be > 0 and below 1e38, got {lr} in round "
                f"{server_round}; see optimizer.schedule.*"
            )
        return lr

    def client_config(self, server_round: int) -> dict[str, float]:
        """Return the numbers that are sent to the clients of a round: the learning rate and the number of clients."""
        return {LR: self.learning_rate(server_round), NUM_CLIENTS: self.num_clients}

    def new_strategy(self) -> Strategy:
        """Return a new server half of the strategy, before any round."""
        with seeded_generators(derive_seed(self.config.seed, "strategy")):
            strategy = self.builder.build("strategy", self.config.strategy["server"], Strategy, "strategy.server")
        disable_waiting(strategy)
        weighted_by = self.config.strategy["weighted_by"]
        for part in nested_strategies(strategy):
            if getattr(part, "weighted_by_key", weighted_by) != weighted_by:
                raise InputError(
                    f"strategy={self.choices['strategy']}: {type(part).__name__} weighs clients by "
                    f"{part.weighted_by_key}, and strategy.weighted_by is {weighted_by}; give it "  # type: ignore[attr-defined]
                    "weighted_by_key: ${strategy.weighted_by} in its YAML"
                )
        apart = buffers(self.model) - self.personal
        how = self.config.strategy["buffers"]
        if not apart or how == "rule":
            return strategy
        return SeparateBuffers(strategy, apart, None if how == "median" else weighted_by)

    def new_client_app(self, model: Module, data: FederatedData, work: LocalWork) -> Clients:
        """Return a ClientApp that trains a model on some data, for some epochs or steps."""
        return self.builder.build(
            "strategy",
            Clients,
            Clients,
            model=model,
            data=data,
            update=self.update,
            personal=self.personal,
            optimizer=self.optimizer,
            work=work,
            availability=self.availability,
            keep_optimizer_state=self.config.local.keep_optimizer_state,
            transforms=self.transforms,
            metrics=self.metrics,
            seed=self.config.seed,
            channel=self.new_channel(),
        )
