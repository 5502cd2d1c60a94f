"""A run as its directory tells it, whatever has become of it. Imports neither torch nor flwr."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError
from fedresearch.runs.record import REFUSED, Row, read_record, read_rows, refuse_lost_rows, standing, state_of


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
        The last line of what it failed of, "" for nothing.
    """

    directory: Path
    state: str
    record: Mapping[str, Any]
    error: str

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
        known = read_record(directory)  # first: a run that ends meanwhile has more rows than it said, never less
        rows = read_rows(directory)
        record = known
        refuse_lost_rows(directory, record, rows)
        state = standing(directory, record)
    except InputError as damage:
        state = state_of(directory)
        if state not in ("missing", "refused"):
            state, error = "damaged", str(damage)
    if state in ("failed", "stalled"):
        error = str(record.get("error") or state)
    if state != "running" and (directory / REFUSED).exists():  # of the last try, before it became a run
        error = (directory / REFUSED).read_text(encoding="utf-8", errors="replace").strip() or "refused"
    return Run(directory, state, record, (error.splitlines() or [""])[-1]), rows
