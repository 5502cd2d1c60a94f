"""One experiment's run, from the first check to the saved model."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from torch import Tensor

from fedresearch.apps.nodes import NodeGrid
from fedresearch.apps.records import sha256
from fedresearch.apps.rounds import Row
from fedresearch.config import Config, digest
from fedresearch.data.federated import FederatedData
from fedresearch.data.plot import label_distribution_png, partition_csv
from fedresearch.errors import InputError
from fedresearch.experiment import Experiment
from fedresearch.runs.directory import MODEL, RunDirectory, finite_row, refuse_used, write_whole
from fedresearch.runs.provenance import provenance
from fedresearch.tracking.console import Console
from fedresearch.tracking.tracker import RunInfo, TrackerGroup

log = logging.getLogger("fedresearch")


def run_experiment(
    config: Config,
    choices: Mapping[str, str | None],
    directory: Path,
    overrides: Sequence[str],
    command: Sequence[str] = sys.orig_argv,
    nodes: NodeGrid | None = None,
) -> None:
    """Run an experiment in a directory of its own.

    Parameters
    ----------
    config : Config
        The checked config.
    choices : mapping
        Config group to chosen option.
    directory : Path
        The run's directory.
    overrides : sequence of str
        What was typed, for the record.
    command : sequence of str
        The command of which they are, for the record.
    nodes : NodeGrid, optional
        SuperNodes that wait for the experiment; None: the config's hardware.

    Raises
    ------
    InputError
        If a part cannot be built as configured, or the directory holds a run already.
    """
    refuse_used(directory)
    experiment = Experiment(config, choices, nodes)
    experiment.build()
    report_small_partitions(experiment.data, config.local.batch_size)
    with experiment.grid:  # only what can run claims the directory
        _run(experiment, directory, overrides, command)


def _run(experiment: Experiment, directory: Path, overrides: Sequence[str], command: Sequence[str]) -> None:
    config, choices, data = experiment.config, experiment.choices, experiment.data
    plain, cell = asdict(config), digest(config, without=("seed",))
    run = RunDirectory(
        directory,
        {
            "name": experiment.name,
            "digest": digest(config),
            "cell": cell,
            "config": plain,
            "choices": dict(choices),
            "overrides": list(overrides),
            "partition_sha256": data.partition_sha256(),
            "validation_sha256": data.validation_sha256(),
            "initial_model_sha256": sha256(experiment.initial_arrays),
            "num_parameters": sum(p.numel() for p in experiment.model.parameters()),
            "num_threads": torch.get_num_threads(),
            **provenance(command),
        },
    )
    trackers = TrackerGroup([experiment.tracker, Console()])  # what a tracker says first stands above the bar
    last: Row = {}

    def log_row(row: Row) -> None:
        run.log(row)
        trackers.log(row)
        if diverged(row) and not diverged(last):
            log.warning("round %d: the loss is not finite, the run has diverged", row["round"])
        last.clear()
        last.update(row)

    def finish(arrays: ArrayRecord) -> None:
        save_model(directory / MODEL, experiment.state_dict(arrays))
        last.update(experiment.evaluate(arrays))  # the last round need not be one to evaluate in

    server_app = experiment.server_app(log_row, finish)
    try:
        title = f"{experiment.name}, seed {config.seed}"
        save_label_distribution(data, config.dataset["declares"]["num_classes"], title, run)
        trackers.start(
            RunInfo(
                directory=directory,
                name=experiment.name,
                group=cell,
                tags=[str(choices[group]) for group in ("strategy", "dataset", "partitioner", "model")],
                config=plain,
                num_rounds=config.federation.num_rounds,
            )
        )
        server_app(experiment.grid, Context(1, 0, {}, RecordDict(), {}))
        trackers.log_model(directory / MODEL)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            run.close(status, error=f"{type(error).__name__}: {error}")
        finally:
            trackers.finish(status, last)
        raise
    run.close("finished", result=finite_row(last))
    trackers.finish("finished", last)


def diverged(row: Row) -> bool:
    """Return whether a row has a loss that is not finite."""
    return any(name.endswith("/loss") and value is None for name, value in finite_row(row).items())


def report_small_partitions(data: FederatedData, batch_size: int) -> None:
    """Name the partitions without samples to train or validate on, and those with less than one batch.

    Raises
    ------
    InputError
        If no partition holds any sample.
    """
    sizes = [len(rows) for rows in data.train]
    if not any(sizes):
        raise InputError("every partition is empty; see the partitioner.* values")
    empty = [i for i, size in enumerate(sizes) if size == 0]
    tiny = [i for i, size in enumerate(sizes) if 0 < size < batch_size]
    if empty:
        log.warning("%s empty and never sampled", _partitions(empty))
    if tiny:
        log.warning("%s less than one batch of %d training samples", _partitions(tiny, "hold"), batch_size)
    if any(len(rows) for rows in data.validation):
        unvalidated = [i for i, rows in enumerate(data.validation) if sizes[i] and not len(rows)]
        if unvalidated:
            log.warning("%s no validation sample and never evaluate", _partitions(unvalidated, "hold"))


def _partitions(ids: Sequence[int], verb: str = "are") -> str:
    shown = ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    plural = len(ids) > 1
    return f"partition{'s' if plural else ''} {shown} {verb if plural else {'are': 'is', 'hold': 'holds'}[verb]}"


def save_label_distribution(data: FederatedData, num_classes: int, title: str, run: RunDirectory) -> None:
    """Write who holds how many samples of which class: partition.csv and, where there are classes, partition.png."""
    labels = None if data.y.is_floating_point() else [y.cpu().numpy() for y in data.targets()]
    run.write_text("partition.csv", partition_csv(data, labels, num_classes))
    if labels is not None:
        run.write_bytes("partition.png", label_distribution_png(labels, num_classes, title))


def save_model(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a model's ``state_dict`` as a safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
