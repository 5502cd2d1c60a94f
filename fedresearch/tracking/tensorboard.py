"""TensorBoard event files in the run directory; needs the extra ``tensorboard``."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedresearch.dotted_keys import leaves
from fedresearch.errors import InputError
from fedresearch.tracking.figures import figures
from fedresearch.tracking.tracker import RunInfo, of_best_round


class TensorBoardTracker:
    """Writes a run's numbers as TensorBoard scalars, the round as the step, and its config as hyperparameters.

    ``tensorboard --logdir outputs`` shows every run below it.

    Raises
    ------
    InputError
        If the package ``tensorboard`` is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise InputError(
                "tracker=tensorboard needs the package tensorboard, which is not installed; "
                'try pip install "fedresearch[tensorboard]"'
            )

    def start(self, run: RunInfo) -> None:
        """Open an event file in ``tensorboard/`` of the run directory."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # Flushed every two seconds (two minutes by default), so that the curves can be watched. What an earlier process
        # logged of the rounds that run again is not shown.
        folder, purged = str(run.directory / "tensorboard"), run.after_round + 1 if run.after_round else None
        self._writer = SummaryWriter(folder, flush_secs=2, purge_step=purged)
        self._file = self._writer._get_file_writer()
        # TensorBoard's HPARAMS tab shows runs beside each other, by what they were configured with.
        values = {name: str(value) if value is None else value for name, value in run.columns.items()}
        scopes = ("eval/{}", "clients/{}_mean", "personal/{}_mean")
        compared = ["eval/loss", *(scope.format(metric) for metric in run.metrics for scope in scopes)]
        for summary in hparams(values, dict.fromkeys(compared, 0.0)):
            self._file.add_summary(summary)
        self._writer.add_text("config", "".join(f"    {key}: {value}\n" for key, value in leaves(run.config)))
        self._run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one round."""
        self._write(row, row["round"])

    def log_model(self, path: Path) -> None:
        """Do nothing: the file is in the run directory already."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Write the best round's numbers and the final figures, and close the event file."""
        if best := of_best_round(summary):
            self._write(best, summary["round"])
        for name, figure in (figures(self._run.directory, self._run.metrics) if status == "finished" else {}).items():
            self._writer.add_image(f"final/{name}", figure, summary.get("round"), dataformats="HWC")
        self._writer.close()

    def _write(self, row: Mapping[str, Any], server_round: int) -> None:
        """Write a row's numbers as one event, which takes an eighth of the time of one for each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {name: value for name, value in row.items() if name != "round" and isinstance(value, int | float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._file.add_summary(Summary(value=values), server_round)
