"""From a config to an experiment's objects, and to its model again; the only caller of ``hydra.utils.instantiate``."""

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra.utils
import safetensors.torch
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from hydra.errors import InstantiationException
from torch.nn import Module

from fedresearch.apps import flower
from fedresearch.apps.client_app import make_client_app
from fedresearch.apps.records import load_arrays
from fedresearch.apps.rounds import RoundLoop, Row
from fedresearch.apps.sampling import UniformSampling
from fedresearch.apps.server_app import make_server_app
from fedresearch.config.check import cohort_size
from fedresearch.config.schema import Config
from fedresearch.data.federated import FederatedData
from fedresearch.data.partition import partition_rows, split_validation
from fedresearch.data.source import Source, check_source
from fedresearch.errors import InputError
from fedresearch.local.objective import evaluate, loss_for
from fedresearch.local.train import Schedule
from fedresearch.local.update import LocalUpdate
from fedresearch.runs.directory import MODEL, RECORD
from fedresearch.seeding import derive_seed
from fedresearch.tracking.tracker import Tracker

# What a constructor raises when it refuses its arguments.
_REFUSALS = (TypeError, ValueError, ImportError, RuntimeError, LookupError, ArithmeticError, MemoryError)


class Experiment:
    """An experiment's parts, each built when first asked for and only once.

    Parameters
    ----------
    config : Config
        The checked config.
    choices : mapping
        Config group to chosen option, for messages and names.
    """

    def __init__(self, config: Config, choices: Mapping[str, str | None]) -> None:
        flower.check_version()
        flower.quieten()
        self.config = config
        self.choices = choices
        self.name = config.name or "-".join(
            str(choices[group]) for group in ("dataset", "partitioner", "model", "strategy")
        )

    def build(self) -> None:
        """Build every part now, and try a step, so that what cannot work fails here."""
        # The initial arrays before anything trains: the clients use the same instance of the model.
        _ = self.initial_arrays, self.data, self.strategy, self.grid, self.tracker
        self._try_step()

    @cached_property
    def data(self) -> FederatedData:
        """The partitioned dataset."""
        config = self.config
        source = self._source()
        options = dict(config.partitioner)
        seeded = "seed" in options
        seed = options.pop("seed", None)
        seed = derive_seed(config.seed, "partition") if seed is None else seed
        make = self._build_partial("partitioner", options)
        takes_seed = seeded and "seed" in inspect.signature(make.func).parameters
        partitioner = self._call("partitioner", make, **({"seed": seed} if takes_seed else {}))
        rows = partition_rows(
            source.train,
            partitioner,
            num_supernodes=config.federation.num_supernodes,
            shuffle_seed=seed if seeded else None,
        )

        def validation_seed(partition_id: int) -> int:
            fixed = config.validation.seed
            return derive_seed(config.seed, "validation", partition_id) if fixed is None else fixed

        splits = [split_validation(r, config.validation.fraction, validation_seed(i)) for i, r in enumerate(rows)]
        train, validation = zip(*splits, strict=True)
        return FederatedData.build(source, train, validation, self._dtype)

    @cached_property
    def model(self) -> Module:
        """The model with its initial weights, which follow from the run's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "initial-weights"))
            return build_model(self.config, self.choices)

    @cached_property
    def strategy(self) -> Strategy:
        """The server half of the strategy."""
        return self._build("strategy", self.config.strategy["server"])

    @cached_property
    def update(self) -> LocalUpdate:
        """The client half of the strategy."""
        return self._build("strategy", self.config.strategy["client"])

    @cached_property
    def schedule(self) -> Schedule:
        """How long a client trains."""
        return Schedule(**asdict(self.config.local))

    @cached_property
    def client_app(self) -> ClientApp:
        """The ClientApp."""
        options = dict(self.config.optimizer)
        del options["lr"]  # comes with each message
        optimizer = self._build_partial("optimizer", options)
        # Refused arguments are told here, and not by the first client.
        self._call("optimizer", optimizer, params=[torch.nn.Parameter(torch.zeros(1))], lr=self.config.optimizer["lr"])
        return make_client_app(
            model=self.model,
            data=self.data,
            update=self.update,
            optimizer=optimizer,
            schedule=self.schedule,
            seed=self.config.seed,
        )

    @cached_property
    def grid(self) -> Grid:
        """Where the clients run."""
        return self._build(
            "hardware", self.config.hardware, client_app=self.client_app, num_supernodes=self.data.num_partitions
        )

    @cached_property
    def initial_arrays(self) -> ArrayRecord:
        """The initial global model."""
        return ArrayRecord(self.model.state_dict())

    @cached_property
    def tracker(self) -> Tracker:
        """The chosen tracker."""
        return self._build("tracker", self.config.tracker)

    def server_app(self, log_row: Callable[[Row], None], finish: Callable[[ArrayRecord], None]) -> ServerApp:
        """Return the ServerApp that hands on each round's row, and the last global arrays."""
        config, federation = self.config, self.config.federation

        def sampling(purpose: Any, fraction: float, holds: Any) -> UniformSampling:
            eligible = [i for i, rows in enumerate(holds) if len(rows)]
            size = cohort_size(self.data.num_partitions, fraction) if fraction else 0
            return UniformSampling(eligible, size, config.seed, purpose)

        loop = RoundLoop(
            strategy=self.strategy,
            num_rounds=federation.num_rounds,
            train_sampling=sampling("train-sampling", federation.fraction_train, self.data.train),
            evaluate_sampling=sampling("evaluate-sampling", federation.fraction_evaluate, self.data.validation),
            evaluate_every=federation.evaluate_every,
            train_config={"lr": float(config.optimizer["lr"])},
            evaluate=self.evaluate,
            log=log_row,
        )
        return make_server_app(loop, self.initial_arrays, finish)

    def evaluate(self, arrays: ArrayRecord) -> Row:
        """Return the loss, and the accuracy where there are classes, of global arrays on the dataset's test split."""
        load_arrays(self.model, arrays)
        loss, accuracy = evaluate(self.model, self.data.test_x, self.data.test_y)
        return {"eval/loss": loss} | ({} if accuracy is None else {"eval/accuracy": accuracy})

    def _try_step(self) -> None:
        """Try the model, a copy of it, on a batch of two and on one of one where some client has such a batch."""
        batch_size = self.config.local.batch_size
        sizes = [len(rows) for rows in self.data.train]
        alone = [i for i, size in enumerate(sizes) if size == 1 or (batch_size and size % batch_size == 1)]
        if not any(sizes):
            return
        for size, partition_id in [(2, sizes.index(max(sizes))), *((1, i) for i in alone[:1])]:
            x, y = self.data.train_samples(partition_id)
            model = copy.deepcopy(self.model).train()
            try:
                with torch.random.fork_rng(devices=[]):
                    loss_for(y)(model(x[:size]), y[:size]).backward()
            except Exception as error:
                hint = f" (the last batch of partitions {alone} is one sample; try another local.batch_size)"
                raise InputError(
                    f"model={self.choices['model']} cannot train on dataset={self.choices['dataset']}: "
                    f"{one_line(error)}{hint if size == 1 else ''}"
                ) from error

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.config.dtype)

    def _source(self) -> Source:
        """Load the dataset, and hold it to what its YAML declares."""
        options = dict(self.config.dataset)
        declared = options.pop("declares")
        source = self._build("dataset", options)
        check_source(source, declared, str(self.choices["dataset"]))
        return source

    def _build(self, group: str, options: Mapping[str, Any], **objects: Any) -> Any:
        return _build(f"{group}={self.choices.get(group)}", options, **objects)

    def _build_partial(self, group: str, options: Mapping[str, Any]) -> "functools.partial[Any]":
        """Return a plain partial: each call of Hydra's own costs a check of its target."""
        made = self._build(group, {**options, "_partial_": True})
        return functools.partial(made.func, *made.args, **made.keywords)

    def _call(self, group: str, make: Callable[..., Any], **objects: Any) -> Any:
        try:
            return make(**objects)
        except _REFUSALS as error:
            raise InputError(f"{group}={self.choices.get(group)}: {one_line(error)}") from error


def build_model(config: Config, choices: Mapping[str, str | None]) -> Module:
    """Build the model for the dataset's declared shape and classes; with dtype float64, all its floats are that."""
    declared = config.dataset["declares"]
    model: Module = _build(
        f"model={choices.get('model')}",
        {key: value for key, value in config.model.items() if key != "requires"},
        input_shape=tuple(declared["input_shape"]),
        num_classes=declared["num_classes"],
    )
    return model.double() if config.dtype == "float64" else model


def load_model(directory: str | Path) -> Module:
    """Return the final global model of a finished run, in evaluation mode.

    Parameters
    ----------
    directory : path
        The run's directory.

    Raises
    ------
    InputError
        If the directory holds no finished run.
    """
    directory = Path(directory)
    if not (directory / MODEL).is_file():
        raise InputError(f"{directory} holds no {MODEL}: it is not the directory of a finished run")
    record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    model = build_model(Config(**record["config"]), record["choices"])
    model.load_state_dict(safetensors.torch.load_file(directory / MODEL))
    return model.eval()


def _build(option: str, config: Mapping[str, Any], **objects: Any) -> Any:
    """Build what a config node describes; what its constructor refuses is told as the option's mistake."""
    try:
        return hydra.utils.instantiate(dict(config), _convert_="all", **objects)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        if cause is None or isinstance(cause, _REFUSALS):
            hint = "; run from the folder that holds it, or add that to PYTHONPATH" * isinstance(cause, ImportError)
            raise InputError(f"{option}: {one_line(cause or error)}{hint}") from error
        raise cause from None


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or repr(error)
