"""From a config to an experiment's objects."""

import copy
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fedresearch.apps import flower
from fedresearch.apps.buffers import BuffersApart
from fedresearch.apps.client_app import Clients
from fedresearch.apps.cohort import CohortGrid
from fedresearch.apps.hooks import Hooks, wait_for_nobody, wrapped
from fedresearch.apps.measures import Row
from fedresearch.apps.nodes import NodeGrid
from fedresearch.apps.records import LR, NUM_CLIENTS
from fedresearch.apps.rounds import RoundLoop
from fedresearch.apps.sampling import Sampling, uniform
from fedresearch.apps.server_app import make_server_app
from fedresearch.building import Builder
from fedresearch.config.cohorts import cohort_size, shortages
from fedresearch.config.schema import Config
from fedresearch.data.facts import Facts, gather_facts
from fedresearch.data.federated import FederatedData
from fedresearch.data.partition import columns, partition_rows, split_validation
from fedresearch.data.source import Rows, Source, check_source
from fedresearch.errors import InputError
from fedresearch.generators import kept, seeded
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.hardware.threads import be_deterministic
from fedresearch.local.objective import evaluate
from fedresearch.local.parts import Names, buffers, parameters
from fedresearch.local.train import Schedule
from fedresearch.local.update import LocalUpdate
from fedresearch.model import build_model
from fedresearch.rehearsal import CannotTakePart, rehearse, rehearse_apart
from fedresearch.seeding import derive_seed
from fedresearch.tracking.tracker import Tracker

# How many rounds are asked before the first for their cohorts.
_ROUNDS_AHEAD = 1000


class Experiment:
    """An experiment's parts, each built when first asked for and only once.

    Parameters
    ----------
    config : Config
        The checked config.
    choices : mapping
        Config group to chosen option, for messages and names.
    nodes : NodeGrid, optional
        SuperNodes that wait for the experiment; None: the config's hardware.
    rows : tuple of two sequences of ndarray, optional
        The rows that each client trains on, and validates on, where they are known; None: as the partitioner says.
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
        self._builder = Builder(choices)
        self._nodes = nodes
        self._rows = rows

    def build(self) -> None:
        """Build every part now, and try a step, so that what cannot work fails here."""
        # The initial arrays before anything trains: the clients use the same instance of the model.
        _ = self.initial_arrays, self.data, self.strategy, self.grid, self.tracker
        for server_round in range(1, self.config.federation.num_rounds + 1):
            self.learning_rate(server_round)
        self._refuse_small_cohorts()
        # Refused arguments are told here, and not by the first client.
        parameter, lr = Parameter(torch.zeros(1)), self.config.optimizer["lr"]
        self._builder.call("optimizer", self._optimizer, Optimizer, params=[parameter], lr=lr)
        self._rehearse()

    @cached_property
    def data(self) -> FederatedData:
        """The partitioned dataset."""
        source = self._source()
        rows = self._rows or self._partition(source)
        data = FederatedData.build(source, *rows, getattr(torch, self.config.dtype))
        return data.to(self._device, self._memory_format)

    @cached_property
    def facts(self) -> Facts:
        """What a reader of the run must know of its data."""
        return gather_facts(self.data)

    @cached_property
    def training_data(self) -> FederatedData:
        """The clients' data; where the strategy pools what they train on, that is all with the first of them."""
        return self.data.pooled() if self.config.strategy["pooled"] else self.data

    @cached_property
    def model(self) -> Module:
        """The model with its initial weights, which follow from the run's seed alone."""
        with seeded(derive_seed(self.config.seed, "initial-weights")):
            model = build_model(self.config, self.choices)
        return model.to(self._device).to(memory_format=self._memory_format)

    @cached_property
    def strategy(self) -> Strategy:
        """The server half of the strategy."""
        return self._new_strategy()

    @cached_property
    def update(self) -> LocalUpdate:
        """The client half of the strategy."""
        return self._builder.build("strategy", self.config.strategy["client"], LocalUpdate, "strategy.client")

    @cached_property
    def personal(self) -> Names:
        """What of the model's ``state_dict`` stays on the clients."""
        personal: Names = self._builder.call("strategy", self.update.personal, frozenset, model=self.model)
        return personal | buffers(self.model) if self.config.strategy["buffers"] == "local" else personal

    @property
    def has_classes(self) -> bool:
        """Whether the dataset has classes, and so accuracies."""
        return bool(self.config.dataset["declares"]["num_classes"] > 1)

    @cached_property
    def client_app(self) -> Clients:
        """The ClientApp."""
        local = self.config.local
        return self._new_client_app(
            self.model, self.training_data, Schedule(local.epochs, local.steps, local.batch_size)
        )

    @cached_property
    def grid(self) -> OrderedGrid | NodeGrid:
        """Where the clients run."""
        return self._nodes or self._builder.build(
            "hardware",
            {key: value for key, value in self.config.hardware.items() if key != "device"},
            OrderedGrid,
            client_app=self.client_app,
            num_supernodes=self.data.num_partitions,
        )

    @cached_property
    def initial_arrays(self) -> ArrayRecord:
        """The initial global model: what of the model is shared."""
        return ArrayRecord({k: v for k, v in self._initial_state.items() if k not in self.personal})

    @cached_property
    def tracker(self) -> Tracker:
        """The chosen tracker."""
        return self._builder.build("tracker", self.config.tracker, Tracker)

    def server_app(
        self,
        log_row: Callable[[Row, ArrayRecord], None],
        log_failure: Callable[[int, int, str, str], None],
        finish: Callable[[ArrayRecord], None],
        after: tuple[Row, ArrayRecord] | None = None,
    ) -> ServerApp:
        """Return the ServerApp that hands on each round's row, what clients raise, and the last global arrays.

        ``after`` is the row of the last round and the global arrays after it, where the run goes on.
        """
        federation, data = self.config.federation, self.data
        evaluating = federation.fraction_evaluate > 0
        loop = RoundLoop(
            hooks=Hooks(self.strategy, self.config.seed),
            num_rounds=federation.num_rounds,
            train_cohort=self._cohort,
            evaluate_cohort=Sampling(
                uniform,
                [len(rows) for rows in data.validation],
                cohort_size(data.num_partitions, federation.fraction_evaluate) if evaluating else 0,
                self.config.seed,
                "evaluate-sampling",
            ),
            target_accuracy=federation.target_accuracy,
            evaluate_every=federation.evaluate_every,
            parameters=parameters(self.model),
            shortage=lambda num_clients: ", ".join(needed for needed, _ in self._shortages(num_clients)),
            client_config=self._client_config,
            evaluate=self.evaluate,
            log=log_row,
            max_failures=federation.max_failures,
            nonfinite=federation.nonfinite,
            log_failure=log_failure,
        )
        last, arrays = after or (None, self.initial_arrays)
        return make_server_app(loop, arrays, finish, last)

    def state_dict(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Return the whole model of global arrays: what is not shared is as it was at the start."""
        return self._initial_state | dict(arrays.to_torch_state_dict())

    def evaluate(self, arrays: ArrayRecord) -> Row:
        """Return the loss, and the accuracy where there are classes, of global arrays on the dataset's test split."""
        self.model.load_state_dict(self.state_dict(arrays))
        with seeded(derive_seed(self.config.seed, "evaluate")):  # dropout that is never off
            loss, accuracy = evaluate(self.model, self.data.test_x, self.data.test_y)
        return {"eval/loss": loss} | ({} if accuracy is None else {"eval/accuracy": accuracy})

    @cached_property
    def _device(self) -> torch.device:
        device = torch.device(self.config.hardware.get("device", "cpu"))
        if device.type == "cuda":
            if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
                raise InputError(
                    f"hardware.device={device} needs a GPU that torch can use, torch {torch.__version__} finds "
                    f"{torch.cuda.device_count()}; try hardware=cpu or hardware=workers"
                )
            be_deterministic()
        return device

    @property
    def _memory_format(self) -> torch.memory_format:
        return {"contiguous": torch.preserve_format, "channels_last": torch.channels_last}[self.config.memory_format]

    @cached_property
    def _initial_state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @cached_property
    def _train_cohort(self) -> Sampling:
        return Sampling(
            self._builder.partial(
                "sampling", self.config.sampling, given=("sizes", "eligible", "cohort_size", "server_round", "seed")
            ),
            [len(rows) for rows in self.training_data.train],
            cohort_size(self.data.num_partitions, self.config.federation.fraction_train),
            self.config.seed,
            "train-sampling",
        )

    def _cohort(self, server_round: int) -> Sequence[int]:
        """Return who trains in a round. For a rule that scores clients, each is there once: twins would be nearest."""
        drawn = self._train_cohort(server_round)
        return sorted(set(drawn)) if "min_cohort" in self.config.strategy else drawn

    def _shortages(self, num_clients: int) -> list[tuple[str, str]]:
        return [*shortages(self.config.strategy, num_clients)]

    def _refuse_small_cohorts(self) -> None:
        """Ask who will train, and refuse a round of fewer than the strategy's rule needs.

        After so many rounds it is left to the loop, which holds the replies to the same.
        """
        if not self._shortages(0) or not self._num_clients:
            return
        for server_round in range(1, min(self.config.federation.num_rounds, _ROUNDS_AHEAD) + 1):
            drawn = self._builder.call("sampling", self._train_cohort, Sequence, server_round=server_round)
            num_clients = len(set(drawn))
            for needed, instead in self._shortages(num_clients):
                which = f"the {num_clients} that train in round {server_round}, of {self._num_clients} with samples"
                raise InputError(f"{needed}, got {which}; try {instead or 'more clients a round'}")

    @cached_property
    def _num_clients(self) -> int:
        return sum(len(rows) > 0 for rows in self.training_data.train)

    @cached_property
    def _optimizer(self) -> Callable[..., Optimizer]:
        options = {k: v for k, v in self.config.optimizer.items() if k not in ("lr", "schedule")}
        return self._builder.partial("optimizer", options, given=("params",))

    @cached_property
    def _learning_rate(self) -> Callable[..., float]:
        return self._builder.partial(
            "schedule", self.config.optimizer["schedule"], given=("lr", "server_round", "num_rounds")
        )

    def sampling_sha256(self) -> str:
        """Return the SHA-256 of who trains in rounds 1 to 10, however many there are."""
        cohorts = [sorted(map(int, self._train_cohort(server_round))) for server_round in range(1, 11)]
        return hashlib.sha256(json.dumps(cohorts).encode()).hexdigest()

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round."""
        lr = float(
            self._builder.call(
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

    def _client_config(self, server_round: int) -> dict[str, float]:
        """Return what a round's clients are told: the learning rate, and of how many clients they are some."""
        return {LR: self.learning_rate(server_round), NUM_CLIENTS: self._num_clients}

    def _new_strategy(self) -> Strategy:
        with seeded(derive_seed(self.config.seed, "strategy")):
            strategy = self._builder.build("strategy", self.config.strategy["server"], Strategy, "strategy.server")
        wait_for_nobody(strategy)
        weighted_by = self.config.strategy["weighted_by"]
        for part in wrapped(strategy):
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
        return BuffersApart(strategy, apart, None if how == "median" else weighted_by)

    def _new_client_app(self, model: Module, data: FederatedData, schedule: Schedule) -> Clients:
        return self._builder.call(
            "strategy",
            Clients,
            Clients,
            model=model,
            data=data,
            update=self.update,
            personal=self.personal,
            optimizer=self._optimizer,
            schedule=schedule,
            keep_optimizer_state=self.config.local.keep_optimizer_state,
            seed=self.config.seed,
        )

    def _rehearse(self) -> None:
        """Let a client answer the first message, all real but the model a copy."""
        if not any(len(rows) for rows in self.training_data.train):
            return
        drawn = self._builder.call("sampling", self._train_cohort, Sequence, server_round=1)
        cohort = CohortGrid(self.grid, sorted(set(drawn)))
        config = ConfigRecord(dict(self._client_config(1)))
        hooks = Hooks(self._new_strategy(), self.config.seed)
        messages = hooks.configure_train(1, self.initial_arrays, config, cohort)
        if not messages:
            raise InputError(f"strategy={self.choices['strategy']}: it sends no message in round 1, so nobody trains")
        model, dataset, strategy = (self.choices[group] for group in ("model", "dataset", "strategy"))
        try:
            # Neither a GPU nor a SuperLink's connection survives a fork, nor do some of macOS's own libraries.
            forks = sys.platform == "linux" and self._device.type == "cpu" and self._nodes is None
            with kept():
                (rehearse_apart if forks else rehearse)(
                    message=messages[0],
                    try_out=self.grid.try_out,
                    clients_on=lambda data: self._new_client_app(copy.deepcopy(self.model), data, Schedule(None, 1, 0)),
                    training_data=self.training_data,
                    data=self.data,
                    batch_size=self.config.local.batch_size,
                )
        except CannotTakePart as error:
            raise InputError(
                f"model={model} cannot {error.doing} on dataset={dataset} with strategy={strategy}: {error}"
            ) from error

    def _partition(self, source: Source) -> tuple[Sequence[Rows], Sequence[Rows]]:
        """Return the rows that each client trains on, and validates on."""
        from flwr_datasets.partitioner import Partitioner  # takes seconds; a client that knows its rows need not wait

        config = self.config
        options = dict(config.partitioner)
        has_seed = "seed" in options
        seed = options.pop("seed", None)
        seed = derive_seed(config.seed, "partition") if seed is None else seed
        make = self._builder.partial("partitioner", options)
        # What has no signature is refused, as what is no partitioner is later.
        arguments = self._builder.call("partitioner", inspect.signature, inspect.Signature, obj=make.func).parameters
        given = {"seed": seed} if has_seed and "seed" in arguments else {}
        if "num_classes" in arguments and "num_classes" not in options:
            given["num_classes"] = len(np.unique(columns(source.train)[options["partition_by"]]))
        with seeded(seed):
            rows = partition_rows(
                source.train,
                self._builder.call("partitioner", make, Partitioner, **given),
                num_supernodes=config.federation.num_supernodes,
                shuffle_seed=seed if has_seed else None,
            )

        def validation_seed(partition_id: int) -> int:
            fixed = config.validation.seed
            return derive_seed(config.seed, "validation", partition_id) if fixed is None else fixed

        splits = [split_validation(r, config.validation.fraction, validation_seed(i)) for i, r in enumerate(rows)]
        train, validation = zip(*splits, strict=True)
        return train, validation

    def _source(self) -> Source:
        """Load the dataset, and hold it to what its YAML declares."""
        options = dict(self.config.dataset)
        declared = options.pop("declares")
        with seeded(derive_seed(self.config.seed, "dataset")):
            source = self._builder.build("dataset", options, Source)
        check_source(source, declared, str(self.choices["dataset"]))
        return source
