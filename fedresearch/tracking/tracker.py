"""What a tracker is: a place that a run's rows go to besides its own directory."""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedresearch.errors import FULL_ERROR, raised_at

log = logging.getLogger(__name__)

_MIRROR_EVERY_S = 1.0  # also what a killed run loses at most, as in W&B's own file


@dataclass(frozen=True)
class RunInfo:
    """What a tracker may know of a run.

    Attributes
    ----------
    directory : Path
        The run directory; it exists, and a tracker writes nowhere else.
    run_id : str
        The run's id, 32 hexadecimal digits; a resumed run keeps it.
    name : str
        What to call the run.
    group : str
        What runs share that differ in their seeds only.
    tags : list of str
        The options chosen, for filtering.
    config : dict
        The resolved config as plain values.
    columns : dict
        What runs are grouped and filtered by, under short names: options, ``seed``, ``lr``, ``alpha``, ``cell``, ...
    num_rounds : int
        Rounds that the run will make at most.
    metrics : list of str
        What is evaluated besides the loss, the first as the most important.
    after_round : int
        The round after which the run resumes; the same rows of later rounds may have been logged before. 0: a new run.
    """

    directory: Path
    run_id: str
    name: str
    group: str
    tags: list[str]
    config: dict[str, Any]
    columns: dict[str, Any]
    num_rounds: int
    metrics: Sequence[str] = ()
    after_round: int = 0


def finite_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's numbers, without texts and what is not finite."""
    return {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


def of_best_round(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a summary says of the best round."""
    return {name: value for name, value in summary.items() if name.startswith("best/")}


@runtime_checkable
class Tracker(Protocol):
    """Takes a run's rows, one a round; the methods are called in the order given here."""

    def start(self, run: RunInfo) -> None:
        """Begin a run."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one round: ``round`` and names such as ``eval/loss`` to int, float, str, or None for no value."""

    def log_model(self, path: Path) -> None:
        """Take the final model's file; a tracker that was not asked to store models ignores it."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run with its status; ``summary`` has keys as a row has.

        The status is ``finished``, ``diverged``, ``stalled``, ``failed`` or ``interrupted``.
        """


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
    """Several trackers as one, which are called in the order given. One that fails is not called again.

    Parameters
    ----------
    trackers : sequence of Tracker
        They get each row as its round ends.
    mirrors : sequence of Tracker
        They get the rows of a second together: a call right after another takes a third of the time of one after a
        round, which may be a millisecond long.
    """

    def __init__(self, trackers: Sequence[Tracker], mirrors: Sequence[Tracker] = ()) -> None:
        self._trackers, self._mirrors = [*trackers], [*mirrors]
        self._late: list[Tracker] = []
        self._rows = deque[Mapping[str, Any]]()  # which the mirrors do not have yet
        self._due = -math.inf  # by time.monotonic

    def start(self, run: RunInfo, late: Sequence[Tracker] = ()) -> None:
        """Begin a run on each; on the late ones only when they are called next, since importing W&B takes seconds."""
        self._run = run
        self._tell_all(lambda tracker: self._late.append(tracker) if tracker in late else tracker.start(run))

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass one round to each."""
        self._tell(self._trackers, lambda tracker: tracker.log(row))
        self._rows.append(row)
        if time.monotonic() >= self._due:
            self._mirror()

    def log_model(self, path: Path) -> None:
        """Pass the final model's file to each."""
        self._mirror()
        self._tell_all(lambda tracker: tracker.log_model(path))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run on each."""
        self._mirror()
        self._tell_all(lambda tracker: tracker.finish(status, summary))

    def _mirror(self) -> None:
        if not self._rows:
            return
        while self._rows:  # one after another: of an interrupt, only the row that is being logged is lost
            self._tell(self._mirrors, methodcaller("log", self._rows.popleft()))
        self._due = time.monotonic() + _MIRROR_EVERY_S

    def _tell_all(self, call: Callable[[Tracker], None]) -> None:
        self._tell(self._trackers, call)
        self._tell(self._mirrors, call)

    def _tell(self, trackers: list[Tracker], call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(trackers):
            try:
                if tracker in self._late:
                    self._late.remove(tracker)
                    tracker.start(self._run)
                call(tracker)
            except (Exception, SystemExit) as error:  # rich leaves by SystemExit when its output is closed
                trackers.remove(tracker)
                log.warning(
                    "%s failed and is switched off: %r%s",
                    type(tracker).__name__,
                    error,
                    raised_at(error),
                    exc_info=os.environ.get(FULL_ERROR) == "1",
                )
