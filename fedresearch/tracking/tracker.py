"""What a tracker is: a place that a run's rows go to besides its own directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """What a tracker may know of a run.

    Attributes
    ----------
    directory : Path
        The run directory; it exists, and a tracker writes nowhere else.
    name : str
        What to call the run.
    group : str
        Digest of the ablation's cell: runs that differ in their seeds only share it.
    tags : list of str
        The options chosen, for filtering.
    config : dict
        The resolved config as plain values.
    num_rounds : int
        Rounds that the run will make at most.
    """

    directory: Path
    name: str
    group: str
    tags: list[str]
    config: dict[str, Any]
    num_rounds: int


class Tracker(Protocol):
    """Takes a run's rows, one a round; the methods are called in the order given here."""

    def start(self, run: RunInfo) -> None:
        """Begin a run."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one round: ``round`` and names such as ``eval/loss`` to int, float, str, or None for no value."""

    def log_model(self, path: Path) -> None:
        """Take the final model's file; a tracker that was not asked to store models ignores it."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run; ``status`` is ``finished`` or ``failed``, ``summary`` has keys as a row has."""


class NoTracker:
    """Keeps nothing: the run directory is enough."""

    def start(self, run: RunInfo) -> None:
        """Do nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_model(self, path: Path) -> None:
        """Do nothing."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class TrackerGroup:
    """Several trackers as one, each told everything in the order given; only those that started are told the rest."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self._started: list[Tracker] = []

    def start(self, run: RunInfo) -> None:
        """Begin a run on each."""
        for tracker in self._trackers:
            tracker.start(run)
            self._started.append(tracker)

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass one round to each."""
        for tracker in self._started:
            tracker.log(row)

    def log_model(self, path: Path) -> None:
        """Pass the final model's file to each."""
        for tracker in self._started:
            tracker.log_model(path)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run on each."""
        for tracker in self._started:
            tracker.finish(status, summary)
