"""One experiment's run, from the first check to the saved model."""

import logging
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, RecordDict

from fedresearch.apps.measures import Row
from fedresearch.apps.nodes import NodeGrid
from fedresearch.apps.records import sha256
from fedresearch.apps.rounds import ClientsFailed, Diverged, Stalled
from fedresearch.checkpoints import Checkpoints, refuse_unkept, restore, save_result
from fedresearch.choosing import check_choices
from fedresearch.config import Config, digest
from fedresearch.config.cohorts import unprotected
from fedresearch.data.federated import FederatedData
from fedresearch.data.plot import label_distribution_png, partition_csv
from fedresearch.errors import InputError, named
from fedresearch.experiment import Experiment
from fedresearch.masking import masked, masked_tree, masked_words
from fedresearch.resuming import goes_on, refuse_other_choice, refuse_other_data, refuse_other_rates
from fedresearch.runs.directory import FAILURES, MODEL, History, RunDirectory, Unwritable, finite_row, now, refuse_used
from fedresearch.runs.provenance import provenance
from fedresearch.runs.record import RECORD, locked, read_record, read_rows
from fedresearch.stopping import interruptible, stop_after_the_round
from fedresearch.tracking.console import Console
from fedresearch.tracking.tracker import RunInfo, TrackerGroup

log = logging.getLogger("fedresearch")


def run_experiment(
    config: Config,
    choices: Mapping[str, str | None],
    directory: Path,
    overrides: Sequence[str],
    command: Sequence[str] = sys.orig_argv,
    config_dirs: Sequence[str] = (),
    again: bool = False,
    nodes: NodeGrid | None = None,
) -> None:
    """Run an experiment in a directory of its own, or go on with the one that is there.

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
    config_dirs : sequence of str
        The folders of further options that it named, for the record.
    again : bool
        Whether the directory may hold the run already: what is finished stays as it is, what is not goes on from its
        last checkpoint.
    nodes : NodeGrid, optional
        SuperNodes that wait for the experiment; None: the config's hardware.

    Raises
    ------
    InputError
        If a part cannot be built as configured, the directory holds another run, more clients failed than may, the run
        diverged, or a round trained nothing.
    Busy
        If another process is at work in the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # On a SuperLink, who stops the ServerApp is heard there.
    with nullcontext() if nodes else interruptible(), locked(directory):
        past: dict[str, Any] = {}
        if again and (directory / RECORD).exists():
            past = read_record(directory)
            if not goes_on(past, config, directory):
                return
        else:
            refuse_used(directory)
        experiment = Experiment(config, choices, nodes)
        experiment.build()
        report_small_partitions(experiment.data, config.local.batch_size, config.federation.fraction_evaluate > 0)
        told = (*unprotected(config.strategy, choices["strategy"]), *unusual_model(config, choices))
        for line in (*experiment.facts.lines(), *told):
            log.warning("%s", line)
        with experiment.grid:  # only what can run claims the directory
            typed = {"overrides": masked_words(overrides), "config_dirs": list(config_dirs)}
            _run(experiment, directory, typed, command, past)


def _run(
    experiment: Experiment,
    directory: Path,
    typed: Mapping[str, Any],
    command: Sequence[str],
    past: Mapping[str, Any],
) -> None:
    config, data = experiment.config, experiment.data
    refuse_unkept(experiment)
    check_choices(experiment)
    record = {**_record(experiment), **typed}
    whence, patches = provenance(command)
    if past:
        refuse_other_data(past, record)
        after, arrays = restore(experiment, directory)
        rows = read_rows(directory)[: after.num_rounds]
        refuse_other_rates(experiment, rows)
        refuse_other_choice(past, config, after.num_rounds)
        record = {**past, **record, "resumed": [*past.get("resumed", ()), _resumption(past, whence, after)]}
    else:
        refuse_full(directory, experiment)
        after, arrays, rows = History(), experiment.initial_arrays, []
        record = {"id": uuid.uuid4().hex, "started": now(), **record, **whence}
    run = RunDirectory(directory, record, after)
    checkpoints = Checkpoints(experiment, run, rows)
    trackers = TrackerGroup([experiment.tracker, Console()])  # what a tracker says first stands above the bar
    last: Row = dict(rows[-1]) if rows else {}

    def log_row(row: Row, arrays: ArrayRecord) -> None:
        run.log(row)
        trackers.log(row)
        if diverged(row) and not diverged(last):
            log.warning("round %d: the loss is not finite, the run has diverged", row["round"])
        last.clear()
        last.update(row)
        checkpoints.after(row, arrays)
        if stopping() and row["round"] < config.federation.num_rounds:
            checkpoints.write(arrays)
            raise KeyboardInterrupt

    def finish(arrays: ArrayRecord) -> None:
        checkpoints.write(arrays)
        save_result(experiment, directory / MODEL, arrays, last)

    server_app = experiment.server_app(log_row, run.log_failure, finish, (rows[-1], arrays) if rows else None)
    try:
        trackers.start(
            RunInfo(
                directory=directory,
                run_id=record["id"],
                name=experiment.name,
                group=record["cell"],
                tags=[str(experiment.choices[group]) for group in ("strategy", "dataset", "partitioner", "model")],
                config=record["config"],
                num_rounds=config.federation.num_rounds,
                after_round=after.num_rounds,
            )
        )
        title = f"{experiment.name}, seed {config.seed}"
        save_label_distribution(data, config.dataset["declares"]["num_classes"], title, run)
        for name, patch in patches.items():
            run.write_text(f"{name}_{after.num_rounds}.diff" if past else f"{name}.diff", patch)
        # On a SuperLink, who stops the ServerApp has no patience.
        on_nodes = isinstance(experiment.grid, NodeGrid)
        with nullcontext(lambda: False) if on_nodes else stop_after_the_round() as stopping:
            server_app(experiment.grid, Context(1, 0, {}, RecordDict(), {}))
        trackers.log_model(directory / MODEL)
    except BaseException as error:
        status = _status(error)
        try:
            what = None if status == "interrupted" else masked(named(error))
            run.close(status, error=what, result=finite_row(last))
        except Unwritable as unwritable:
            log.warning("%s", unwritable)  # and what ended the run is told
        finally:
            trackers.finish(status, last)
        told = _told(error, directory)
        if told is None:
            raise
        raise told from error
    status = "diverged" if diverged(last) else "finished"
    run.close(status, error=None, result=finite_row(last))
    trackers.finish(status, last)


def _record(experiment: Experiment) -> dict[str, Any]:
    """Return what a run's record says of the experiment."""
    config, data = experiment.config, experiment.data
    facts = asdict(experiment.facts)
    return {
        "name": experiment.name,
        "digest": digest(config),
        "cell": digest(config, seeds=False),
        "config": masked_tree({**asdict(config), "resume": None}),
        "choices": dict(experiment.choices),
        "data_sha256": facts.pop("sha256"),
        "data": facts,
        "partition_sha256": data.partition_sha256(),
        "validation_sha256": data.validation_sha256(),
        "initial_model_sha256": sha256(experiment.initial_arrays),
        "sampling_sha256": experiment.sampling_sha256(),
        "own_models": experiment.client_app.has_own_model,
        "personal": sorted(experiment.personal),
        "num_parameters": sum(p.numel() for p in experiment.model.parameters()),
        "num_threads": torch.get_num_threads(),
    }


def _resumption(past: Mapping[str, Any], whence: Mapping[str, Any], after: History) -> dict[str, Any]:
    """Return what a record says of a run's going on: when, after which round, and what has changed; say so."""
    changed = {key: value for key, value in whence.items() if key != "command" and value != past.get(key)}
    other_code = any(_code(whence).get(key) != _code(past).get(key) for key in ("commit", "diff_sha256"))
    if other_code or changed.keys() & {"versions", "processor", "python"}:
        log.warning("the code, its packages or the machine have changed since this run was begun: see run.json")
    log.warning("going on after round %d", after.num_rounds)
    return {"at": now(), "after_round": after.num_rounds, "command": whence["command"], **changed}


def _code(whence: Mapping[str, Any]) -> Mapping[str, Any]:
    return whence["git"]["fedresearch"] or {}


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, Stalled):
        return "stalled"
    return "diverged" if isinstance(error, Diverged) else "failed"


def _told(error: BaseException, directory: Path) -> InputError | None:
    """Return what the user is to read where the run itself ended so, and no programming mistake did."""
    if isinstance(error, Diverged):
        return InputError(f"{error}; try a smaller optimizer.lr, or federation.nonfinite=drop or keep")
    if isinstance(error, Stalled):
        return InputError(f"{error}; resume={directory} tries the round again")
    if isinstance(error, ClientsFailed):
        first, *_, raised = str(error).strip().splitlines()
        return InputError(
            f"{first} {raised}; its traceback is in {directory / FAILURES}; mend it and go on with resume={directory}, "
            "or allow some with federation.max_failures=1"
        )
    if isinstance(error, Unwritable):
        return InputError(f"{error}; mend that, and go on with resume={directory}")
    return None


def refuse_full(directory: Path, experiment: Experiment) -> None:
    """Refuse a disk that has no room for the run's model and checkpoints.

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


def diverged(row: Row) -> bool:
    """Return whether a row has a loss that is not finite."""
    return any(name.endswith("/loss") and value is None for name, value in finite_row(row).items())


def unusual_model(config: Config, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a line where the images are smaller than the model is usually given."""
    side, shape = config.model.get("requires", {}).get("usual_side", 0), config.dataset["declares"]["input_shape"]
    if len(shape) == 3 and min(shape[1:]) < side:
        yield (
            f"model={choices['model']} is made for images of {side} x {side} pixels or more, and dataset="
            f"{choices['dataset']} has {shape[1]} x {shape[2]}: a round may take minutes and gain nothing; a smaller "
            "model is usual, such as model=mlp"
        )


def report_small_partitions(data: FederatedData, batch_size: int, evaluates: bool) -> None:
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
    if evaluates and not any(len(rows) for rows in data.validation):
        log.warning("no client holds a validation sample: nobody evaluates; try a larger validation.fraction")
    elif evaluates:
        unvalidated = [i for i, rows in enumerate(data.validation) if sizes[i] and not len(rows)]
        if unvalidated:
            log.warning("%s no validation sample: no evaluation there", _partitions(unvalidated, "hold"))


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
