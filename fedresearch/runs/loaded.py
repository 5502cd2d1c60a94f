"""A run as its directory records it, in any state. Imports neither torch nor flwr."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError, raised_line
from fedresearch.runs.columns import Declared
from fedresearch.runs.files import read_bytes
from fedresearch.runs.record import RECORD, REFUSED, Row, read_run, state_of, state_of_record
from fedresearch.runs.record_fields import refuse_invalid_fields

_MAX_REFUSAL_BYTES = 1_000_000


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Parameters
    ----------
    directory : Path
        Where it is, or was to be.
    state : str
        As :func:`fedresearch.runs.record.state_of` says; ``damaged`` also where its rows are.
    record : mapping
        ``run.json``; empty where there is none that can be read.
    error : str
        What it failed of on one line, "" for nothing.
    """

    directory: Path
    state: str
    record: Mapping[str, Any]
    error: str

    @property
    def planned_rounds(self) -> int | None:
        """How many rounds it was to make; None where its record does not say."""
        federation = self.record.get("config", {}).get("federation")
        return federation["num_rounds"] if federation else None

    @property
    def own_models(self) -> bool:
        """Whether its result is the clients' own models, and not the global one."""
        return bool(self.record.get("own_models"))

    @property
    def declared(self) -> Declared:
        """What its record declares of its columns."""
        return self.record.get("columns", {})

    @property
    def failed(self) -> bool:
        """Whether somebody has to look at it."""
        return bool(self.error) or self.state == "damaged"


def load(directory: Path) -> tuple[Run, list[Row]]:
    """Return the run of a directory, which need not be there, and the rows of its rounds so far."""
    record: Mapping[str, Any] = {}
    rows: list[Row] = []
    error = ""
    try:
        known, rows = read_run(directory)
        refuse_invalid_fields(directory / RECORD, known)
        record, state = known, state_of_record(directory, known)
    except InputError as damage:
        state = state_of(directory)
        if state not in ("missing", "refused"):
            state, error = "damaged", str(damage)
    if state in ("failed", "stalled"):
        error = str(record.get("error") or state)
    if state != "running":  # of the last try, before it became a run
        error = _refusal(directory) or error
    return Run(directory, state, record, raised_line(error)), rows


def evaluated_metrics(record: Mapping[str, Any]) -> list[str]:
    """Return what a run evaluates: the metrics of its config, and the loss."""
    return [*record.get("config", {}).get("metrics", ["accuracy"]), "loss"]


def usual_metrics(runs: Iterable[Run]) -> list[str]:
    """Return the columns that a table of runs may be about, the most usual first."""
    names = dict.fromkeys(name for run in runs for name in evaluated_metrics(run.record))
    return [f"{scope}/{name}" for name in names for scope in ("eval", "clients", "personal")]


def default_metric(runs: Sequence[tuple[Run, Collection[str]]]) -> str:
    """Return the column that a table of these runs, each with its columns, is about where none is named.

    Where clients' own models are the result of all runs, it is theirs.
    """
    begun = [run for run, columns in runs if columns]
    usual = usual_metrics(run for run, _ in runs) or ["eval/accuracy"]
    personal = [name for name in usual if name.startswith("personal/")]
    metrics = personal * (bool(begun) and all(run.own_models for run in begun)) + usual
    return next((name for name in metrics if any(name in columns for _, columns in runs)), usual[0])


def wrong_model_warning(metric: str, personal: Sequence[str], of: str) -> str:
    """Return what to say where a metric is not of the results of some runs, or cells; "" where it is of all.

    Parameters
    ----------
    metric : str
        The column.
    personal : sequence of str
        Names of those of which the clients' own models are the result.
    of : str
        How many there are in all, such as ``6 jobs``.
    """
    scope, _, measure = metric.partition("/")
    if not personal or scope not in ("eval", "clients"):
        return ""
    return (
        f"{metric} is of the global model, and in {len(personal)} of {of}, such as {personal[0]}, the clients' own "
        f"models are the result: compare personal/{measure} of these with clients/{measure} of the others"
    )


def _refusal(directory: Path) -> str:
    """Return why a job of a sweep did not become a run; "" where nothing says so."""
    try:
        text = read_bytes(directory / REFUSED, _MAX_REFUSAL_BYTES).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except InputError as error:
        return str(error)
    return text.strip() or "refused"
