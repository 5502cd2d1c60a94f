"""Warnings about an experiment before it runs, and the check of free disk space."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedresearch.config.cohorts import unprotected
from fedresearch.config.input_shape import input_shape
from fedresearch.config.metrics import unfit
from fedresearch.config.schema import Config
from fedresearch.data.federated import FederatedData
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment

log = logging.getLogger("fedresearch")


def advise(experiment: Experiment) -> None:
    """Warn about small partitions, missing parts of the dataset, and options that do not suit each other.

    Raises
    ------
    InputError
        If every partition is empty.
    """
    config, choices = experiment.config, experiment.choices
    _warn_of_small_partitions(experiment.data, config.local.batch_size, config.federation.fraction_evaluate > 0)
    lines = (*experiment.facts.lines(), *unprotected(config.strategy, choices["strategy"]))
    for line in (*lines, *_unusual_model(config, choices), *_left_out_metrics(config, choices)):
        log.warning("%s", line)


def refuse_full_disk(directory: Path, experiment: Experiment) -> None:
    """Reject a disk without room for the run's model and checkpoints.

    Raises
    ------
    InputError
        With the needed and the free space.
    """
    model = sum(tensor.nbytes for tensor in experiment.model.state_dict().values())
    needed, free = (experiment.config.checkpoint.keep + 2) * model + 1_000_000, shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"{directory} has {free // 1_000_000} MB free, and the run needs {-(-needed // 1_000_000)} MB or more; "
            "free space, or try another hydra.run.dir (for a sweep, hydra.sweep.dir)"
        )


def _unusual_model(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a line if the images are smaller than usual for the model."""
    side, shape = config.model.get("requires", {}).get("usual_side", 0), input_shape(config)
    if len(shape) == 3 and min(shape[1:]) < side:
        yield (
            f"model={choices['model']} is made for images of {side} x {side} pixels or more, and dataset="
            f"{choices['dataset']} has {shape[1]} x {shape[2]}: a round may take minutes without a better result; "
            "try a smaller model, such as model=mlp"
        )


def _left_out_metrics(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a line for each metric that the dataset's targets do not fit."""
    for name, needs in unfit(config).items():
        instead = "r2" if needs == "classes" else "accuracy"
        yield (
            f"{name} is not measured: it needs {needs} as targets, and dataset={choices['dataset']} has none; "
            f"try metrics={instead}"
        )


def _warn_of_small_partitions(data: FederatedData, batch_size: int, evaluates: bool) -> None:
    """Warn about partitions without samples to train or validate on, and those with less than one batch."""
    sizes = [len(rows) for rows in data.train]
    if not any(sizes):
        raise InputError("every partition is empty; see the partitioner.* values")
    empty = [i for i, size in enumerate(sizes) if size == 0]
    tiny = [i for i, size in enumerate(sizes) if 0 < size < batch_size]
    if empty:
        log.warning("%s empty and never sampled", _partitions(empty, "is", "are"))
    if tiny:
        log.warning("%s less than one batch of %d training samples", _partitions(tiny, "holds", "hold"), batch_size)
    if evaluates and not any(len(rows) for rows in data.validation):
        log.warning("no client holds a validation sample, so no client evaluates; try a larger validation.fraction")
    elif evaluates:
        unvalidated = [i for i, rows in enumerate(data.validation) if sizes[i] and not len(rows)]
        if unvalidated:
            log.warning(
                "%s no validation sample, so no evaluation happens there", _partitions(unvalidated, "holds", "hold")
            )


def _partitions(ids: Sequence[int], singular: str, plural: str) -> str:
    listed = ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    return f"partition {listed} {singular}" if len(ids) == 1 else f"partitions {listed} {plural}"
