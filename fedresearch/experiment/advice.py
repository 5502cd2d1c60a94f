"""What a user should know of an experiment before it runs, and what a disk must have room for."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedresearch.config.cohorts import unprotected
from fedresearch.config.schema import Config
from fedresearch.data.federated import FederatedData
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment

log = logging.getLogger("fedresearch")


def advise(experiment: Experiment) -> None:
    """Warn of small partitions, of what the dataset lacks, and of options that do not fit each other.

    Raises
    ------
    InputError
        If no partition holds any sample.
    """
    config, choices = experiment.config, experiment.choices
    _warn_of_small_partitions(experiment.data, config.local.batch_size, config.federation.fraction_evaluate > 0)
    lines = (*experiment.facts.lines(), *unprotected(config.strategy, choices["strategy"]))
    for line in (*lines, *_unusual_model(config, choices)):
        log.warning("%s", line)


def refuse_full_disk(directory: Path, experiment: Experiment) -> None:
    """Reject a disk that has no room for the run's model and checkpoints.

    Raises
    ------
    InputError
        With what is needed and what is free.
    """
    model = sum(tensor.nbytes for tensor in experiment.model.state_dict().values())
    needed, free = (experiment.config.checkpoint.keep + 2) * model + 1_000_000, shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"{directory} has {free // 1_000_000} MB free, and the run needs {-(-needed // 1_000_000)} MB or more; "
            "make room, or try another hydra.run.dir (of a sweep: hydra.sweep.dir)"
        )


def _unusual_model(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a line where the images are smaller than the model is usually given."""
    side, shape = config.model.get("requires", {}).get("usual_side", 0), config.dataset["declares"]["input_shape"]
    if len(shape) == 3 and min(shape[1:]) < side:
        yield (
            f"model={choices['model']} is made for images of {side} x {side} pixels or more, and dataset="
            f"{choices['dataset']} has {shape[1]} x {shape[2]}: a round may take minutes and gain nothing; a smaller "
            "model is usual, such as model=mlp"
        )


def _warn_of_small_partitions(data: FederatedData, batch_size: int, evaluates: bool) -> None:
    """Name the partitions without samples to train or validate on, and those with less than one batch."""
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
        log.warning("no client holds a validation sample: nobody evaluates; try a larger validation.fraction")
    elif evaluates:
        unvalidated = [i for i, rows in enumerate(data.validation) if sizes[i] and not len(rows)]
        if unvalidated:
            log.warning("%s no validation sample: no evaluation there", _partitions(unvalidated, "holds", "hold"))


def _partitions(ids: Sequence[int], singular: str, plural: str) -> str:
    listed = ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    return f"partition {listed} {singular}" if len(ids) == 1 else f"partitions {listed} {plural}"
