"""Runs one experiment, from the first check to the saved model."""

import logging
import sys
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, RecordDict

from fedresearch.config import digest
from fedresearch.data.plot import label_distribution_svg, partition_csv
from fedresearch.experiment.advice import advise, refuse_full_disk
from fedresearch.experiment.checkpoints import refuse_unsupported_state, restore
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.naming import group_name, run_label, short_columns, tags
from fedresearch.experiment.preparation import prepare
from fedresearch.experiment.recorder import Recorder, explain_failure
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.resuming import (
    is_unfinished,
    refuse_changed_data,
    refuse_changed_rates,
    refuse_changed_selection,
)
from fedresearch.experiment.selection import check_selection
from fedresearch.experiment.stopping import interruptible, no_signal_lost, stop_after_the_round
from fedresearch.federation.measures import Row
from fedresearch.federation.nodes import NodeGrid
from fedresearch.federation.records import sha256
from fedresearch.federation.row_sums import compile_in
from fedresearch.federation.server_app import make_server_app
from fedresearch.hardware.threads import restored_settings
from fedresearch.masking import masked_tree, masked_words
from fedresearch.runs.directory import MODEL, History, RunDirectory, now, refuse_used
from fedresearch.runs.provenance import provenance
from fedresearch.runs.record import METRICS, RECORD, locked, parse_rows, read_record, read_rows_bytes
from fedresearch.tracking.console import Console
from fedresearch.tracking.tracker import RunInfo, TrackerGroup

log = logging.getLogger("fedresearch")


def run_experiment(request: RunRequest, nodes: NodeGrid | None = None) -> None:
    """Run an experiment in its own directory, or resume the run in that directory.

    Parameters
    ----------
    request : RunRequest
        The experiment and its directory.
    nodes : NodeGrid, optional
        SuperNodes that wait for the experiment; None: the config's hardware.

    Raises
    ------
    InputError
        If a part cannot be built as configured, the directory holds another run, too many clients failed, the run
        diverged, or no client trained in a round.
    Busy
        If another process works in the directory.
    """
    directory = request.directory
    directory.mkdir(parents=True, exist_ok=True)
    # On a SuperLink, Flower's own handlers receive the signals.
    with nullcontext() if nodes else interruptible(), locked(directory), restored_settings():
        past: dict[str, Any] = {}
        if request.may_resume and (directory / RECORD).exists():
            past = read_record(directory)
            if not is_unfinished(past, request):
                return
        else:
            refuse_used(directory)
        with no_signal_lost():  # it imports what options need
            experiment = Experiment(request.config, request.choices, nodes)
            prepare(experiment)
            advise(experiment)
        with experiment.grid:  # an experiment that cannot run leaves no record
            refuse_unsupported_state(experiment)
            check_selection(experiment)
            whence, patches = provenance(request.command)
            start = _resume(experiment, request, past, whence) if past else _begin(experiment, request, whence)
            _run_rounds(experiment, start, directory, patches, request.job)


@dataclass(frozen=True)
class _Start:
    """The start of the rounds: the run's record, and the results of earlier rounds."""

    record: dict[str, Any]
    history: History
    arrays: ArrayRecord
    rows: list[Row]
    is_resumed: bool


def _begin(experiment: Experiment, request: RunRequest, whence: Mapping[str, Any]) -> _Start:
    """Start a new run."""
    refuse_full_disk(request.directory, experiment)
    record = {"id": uuid.uuid4().hex, "started": now(), **_record(experiment, request), **whence}
    return _Start(record, History(), experiment.initial_arrays, [], is_resumed=False)


def _resume(experiment: Experiment, request: RunRequest, past: Mapping[str, Any], whence: Mapping[str, Any]) -> _Start:
    """Resume a run after its last checkpoint, if finished rounds would have the same numbers."""
    record = _record(experiment, request)
    refuse_changed_data(past, record)
    history, arrays = restore(experiment, request.directory)
    rows, _ = parse_rows(read_rows_bytes(request.directory)[: history.num_bytes], request.directory / METRICS)
    refuse_changed_rates(experiment, rows)
    refuse_changed_selection(past, experiment.config, history.num_rounds)
    resumed = [*past.get("resumed", ()), _resumption(past, whence, history)]
    return _Start({**past, **record, "resumed": resumed}, history, arrays, rows, is_resumed=True)


def _run_rounds(experiment: Experiment, start: _Start, directory: Path, patches: Mapping[str, str], job: str) -> None:
    """Run and record the rounds that are left."""
    compile_in(experiment.config.cache_dir)
    run = RunDirectory(directory, start.record, start.history)
    trackers = TrackerGroup([Console(job=job)], [experiment.tracker])
    recorder = Recorder(experiment, run, start.rows, trackers)
    grid, last = experiment.grid, start.rows[-1] if start.rows else None
    # On a SuperLink this already runs in a ServerApp, and whoever stops it does not wait for a round.
    on_nodes = isinstance(grid, NodeGrid)
    try:
        # The initial model's row comes soon, and before a tracker that takes seconds to import.
        row_is_near = experiment.config.federation.evaluate_initial and not start.is_resumed
        trackers.start(_run_info(experiment, start, directory), [experiment.tracker] if row_is_near else [])
        _write_partition(experiment, run)
        for name, patch in patches.items():
            run.write_text(f"{name}_{start.history.num_rounds}.diff" if start.is_resumed else f"{name}.diff", patch)
        with nullcontext(lambda: False) if on_nodes else stop_after_the_round() as stopping:
            loop = experiment.round_loop(
                partial(recorder.after_round, stopping=stopping),
                run.log_failure,
                run.log_clients if experiment.config.clients_table else None,
            )
            if on_nodes:
                recorder.finish(loop.run(grid, start.arrays, last))
            else:
                server_app = make_server_app(loop, start.arrays, recorder.finish, last)
                server_app(grid, Context(1, 0, {}, RecordDict(), {}))
        trackers.log_model(directory / MODEL)
    except BaseException as error:
        recorder.close_after(error)
        message = explain_failure(error, directory, float(experiment.config.optimizer["lr"]))
        if message is None:
            raise
        raise message from error
    recorder.close()


def _run_info(experiment: Experiment, start: _Start, directory: Path) -> RunInfo:
    """Return the information that trackers show about a run."""
    config, record = experiment.config, start.record
    return RunInfo(
        directory=directory,
        run_id=record["id"],
        name=config.name or f"{run_label(record)}, seed {config.seed}",
        group=group_name(record),
        tags=tags(record),
        config=record["config"],
        columns=short_columns(record),
        num_rounds=config.federation.num_rounds,
        metrics=[name for name in experiment.measured if "/" not in name],
        after_round=start.history.num_rounds,
    )


def _record(experiment: Experiment, request: RunRequest) -> dict[str, Any]:
    """Return the part of a run's record that describes the experiment and the command."""
    config, data = experiment.config, experiment.data
    facts = asdict(experiment.facts)
    return {
        "name": experiment.name,
        "digest": digest(config),
        "cell": digest(config, seeds=False),
        "config": masked_tree({**asdict(config), "resume": None}),
        "choices": dict(experiment.choices),
        "hardware": experiment.hardware,
        "data_sha256": facts.pop("sha256"),
        "data": facts,
        "partition_sha256": data.partition_sha256(),
        "validation_sha256": data.validation_sha256(),
        "initial_model_sha256": sha256(experiment.initial_arrays),
        "sampling_sha256": experiment.sampling_sha256(),
        "own_models": experiment.client_app.has_own_model,
        "personal": sorted(experiment.personal),
        "columns": experiment.declared_columns,
        "num_parameters": sum(p.numel() for p in experiment.model.parameters()),
        "num_threads": torch.get_num_threads(),
        "overrides": masked_words(request.overrides),
        "config_dirs": list(request.config_dirs),
    }


def _resumption(past: Mapping[str, Any], whence: Mapping[str, Any], after: History) -> dict[str, Any]:
    """Return a record's entry for a resume: its time, its round and the changes; warn about changes."""
    changed = {key: value for key, value in whence.items() if key != "command" and value != past.get(key)}
    other_code = any(_code(whence).get(key) != _code(past).get(key) for key in ("commit", "diff_sha256"))
    if other_code or changed.keys() & {"versions", "processor", "python"}:
        log.warning("the code, its packages or the machine have changed since this run started; see run.json")
    print(f"resuming after round {after.num_rounds}", file=sys.stderr, flush=True)
    return {"at": now(), "after_round": after.num_rounds, "command": whence["command"], **changed}


def _code(whence: Mapping[str, Any]) -> Mapping[str, Any]:
    return whence["git"]["fedresearch"] or {}


def _write_partition(experiment: Experiment, run: RunDirectory) -> None:
    """Write each client's number of samples per class: partition.csv and, with classes, partition.svg."""
    data = experiment.data
    num_classes = experiment.config.dataset["declares"]["num_classes"]
    labels = None if data.y.is_floating_point() else [y.cpu().numpy() for y in data.targets()]
    run.write_text("partition.csv", partition_csv(data, labels, num_classes))
    if labels is not None:
        title = f"{experiment.name}, seed {experiment.config.seed}"
        run.write_text("partition.svg", label_distribution_svg(labels, num_classes, title))
