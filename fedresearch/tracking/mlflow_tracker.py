"""MLflow: a run there for each run, in the run directory or on a tracking server; needs the extra ``mlflow``."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError
from fedresearch.tracking.figures import figures
from fedresearch.tracking.tracker import RunInfo, finite_numbers, of_best_round


class MlflowTracker:
    """Mirrors a run to MLflow: its numbers, the short columns of its config as parameters, and its figures.

    Parameters
    ----------
    experiment : str
        MLflow's experiment, which holds runs.
    tracking_uri : str or None
        Where MLflow keeps them; None: ``mlflow.db`` in the run directory.

    Raises
    ------
    InputError
        If the package ``mlflow`` is not installed.
    """

    def __init__(self, *, experiment: str = "fedresearch", tracking_uri: str | None = None) -> None:
        if find_spec("mlflow") is None:
            raise InputError(
                'tracker=mlflow needs the package mlflow, which is not installed; try pip install "fedresearch[mlflow]"'
            )
        self._experiment, self._uri = experiment, tracking_uri

    def start(self, run: RunInfo) -> None:
        """Make an MLflow run; a resumed run continues its own."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._run = run
        self._client = MlflowClient(self._uri or f"sqlite:///{run.directory.absolute()}/mlflow.db")
        found = self._client.get_experiment_by_name(self._experiment)
        store = None if self._uri else (run.directory.absolute() / "mlflow").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment, store)
        past = self._client.search_runs([experiment], f"tags.run_id = '{run.run_id}'", max_results=1)
        if past:
            self._id = past[0].info.run_id
            return
        labels = {"run_id": run.run_id, "group": run.group, **dict.fromkeys(run.tags, "true")}
        self._id = self._client.create_run(experiment, tags=labels, run_name=run.name).info.run_id
        self._client.log_batch(self._id, params=[Param(name, str(value)) for name, value in run.columns.items()])
        self._client.log_dict(self._id, run.config, "config.json")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of one round."""
        self._log(row, row["round"])

    def log_model(self, path: Path) -> None:
        """Do nothing: the file is in the run directory already."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Log the best round's numbers and the figures, and end the MLflow run."""
        if status == "finished":
            self._log(of_best_round(summary), summary["round"])
            for name, pixels in figures(self._run.directory, self._run.metrics).items():
                self._client.log_image(self._id, pixels, f"{name}.png")
        self._client.set_terminated(self._id, "FINISHED" if status == "finished" else "FAILED")

    def _log(self, row: Mapping[str, Any], server_round: int) -> None:
        from mlflow.entities import Metric

        at = int(1000 * time.time())
        metrics = [Metric(name, value, at, server_round) for name, value in finite_numbers(row).items()]
        self._client.log_batch(self._id, metrics)
