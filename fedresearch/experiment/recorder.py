"""Records a run round by round: rows, trackers, checkpoints and the final model."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord

from fedresearch.errors import InputError, named, one_line, own_place, raised_at, raised_line
from fedresearch.experiment.checkpoints import Checkpoints, save_result
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.selection import BestRound
from fedresearch.federation.measures import Row
from fedresearch.federation.rounds import ClientsFailed, Diverged, Stalled
from fedresearch.masking import masked
from fedresearch.runs.directory import CONFUSION, FAILURES, MODEL, RunDirectory, Unwritable, finite_row
from fedresearch.tracking.tracker import TrackerGroup

log = logging.getLogger("fedresearch")


class Recorder:
    """Records a run's rounds and how it ends.

    Parameters
    ----------
    experiment : Experiment
        The experiment that runs.
    run : RunDirectory
        Its directory.
    rows : list of dict
        The rows of the rounds before this process.
    trackers : TrackerGroup
        Trackers that have started.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory, rows: list[Row], trackers: TrackerGroup) -> None:
        self._experiment, self._run, self._trackers = experiment, run, trackers
        self._checkpoints = Checkpoints(experiment, run)
        self._best = BestRound(experiment, rows)
        self._last: Row = rows[-1] if rows else {}

    def after_round(self, row: Row, arrays: ArrayRecord, stopping: Callable[[], bool]) -> None:
        """Record a round's row, and write the checkpoint if it is due.

        Parameters
        ----------
        row : dict
            The round's numbers.
        arrays : ArrayRecord
            The new global model.
        stopping : callable
            Whether the run must end after this round.

        Raises
        ------
        KeyboardInterrupt
            If the run must end and rounds are left.
        """
        self._run.log(row)
        self._trackers.log(row)
        if diverged(row) and not diverged(self._last):
            log.warning("round %d: the loss is not finite, the run has diverged", row["round"])
        self._last = row
        self._checkpoints.after(row, arrays, is_best=self._best.see(row))
        if stopping() and row["round"] < self._experiment.config.federation.num_rounds:
            self._checkpoints.write(arrays)
            raise KeyboardInterrupt

    def finish(self, arrays: ArrayRecord) -> None:
        """Write the final checkpoint, the final model, and its confusion matrix where it distinguishes classes."""
        self._checkpoints.write(arrays)
        save_result(self._experiment, self._run.path / MODEL, arrays, self._last)
        counts = None if diverged(self._last) else self._experiment.confusion(arrays)
        if counts:
            lines = [["class", *range(len(counts))], *([true, *row] for true, row in enumerate(counts))]
            self._run.write_text(CONFUSION, "".join(",".join(map(str, line)) + "\n" for line in lines))

    def close(self) -> None:
        """Record that the run has done all its rounds."""
        status = "diverged" if diverged(self._last) else "finished"
        self._run.close(status, error=None, result=finite_row(self._last))
        self._trackers.finish(status, self._last | self._best.summary)

    def close_after(self, error: BaseException) -> None:
        """Record the error that ended the run."""
        status = _status(error)
        what = None if status == "interrupted" else masked(named(error) + own_place(error))
        try:
            self._run.close(status, error=what, result=finite_row(self._last))
        except Unwritable as unwritable:
            log.warning("%s", unwritable)  # the error that ended the run is reported too
        finally:
            self._trackers.finish(status, self._last | self._best.summary)


def diverged(row: Row) -> bool:
    """Return whether a row has a loss that is not finite: of the training, the global model or clients' own models."""
    losses = [row[name] for name in ("train/loss", "eval/loss", "personal/loss") if name in row]
    return not all(loss is not None and math.isfinite(loss) for loss in losses)


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, Stalled):
        return "stalled"
    return "diverged" if isinstance(error, Diverged) else "failed"


def explain_failure(error: BaseException, directory: Path, lr: float) -> InputError | None:
    """Return the line for an error of the experiment that ended the run; None for a programming mistake of ours."""
    if isinstance(error, Diverged):
        hint = f"try a smaller optimizer.lr, such as optimizer.lr={lr / 10:g}"
        return InputError(f"{error}; {hint}, or federation.nonfinite=drop or keep")
    if isinstance(error, Stalled):
        return InputError(f"{error}; resume={directory} tries the round again")
    if isinstance(error, ClientsFailed):
        first, _, traceback = str(error).partition("\n")
        return InputError(
            f"{first} {raised_line(traceback)}; its traceback is in {directory / FAILURES}; fix it and resume with "
            f"resume={directory}, or allow some with federation.max_failures=1"
        )
    if isinstance(error, Unwritable):
        return InputError(f"{error}; fix this and resume with resume={directory}")
    if isinstance(error, Exception) and not isinstance(error, InputError) and (place := raised_at(error)):
        return InputError(f"{one_line(named(error))}{place}; fix it and resume with resume={directory}")
    return None
