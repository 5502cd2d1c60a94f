"""Trackio: W&B's interface on a local database, in Trackio's own folder; needs the extra ``trackio``."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedresearch.errors import InputError
from fedresearch.tracking.figures import figures
from fedresearch.tracking.tracker import RunInfo, finite_numbers, of_best_round


class TrackioTracker:
    """Mirrors a run to Trackio: its numbers, the short columns of its config, and its figures.

    Trackio has one folder for all runs, which ``TRACKIO_DIR`` names.

    Parameters
    ----------
    project : str
        Trackio's project, which holds runs.

    Raises
    ------
    InputError
        If the package ``trackio`` is not installed.
    """

    def __init__(self, *, project: str = "fedresearch") -> None:
        if find_spec("trackio") is None:
            raise InputError(
                "tracker=trackio needs the package trackio, which is not installed; try pip install "
                '"fedresearch[trackio]"'
            )
        self._project = project

    def start(self, run: RunInfo) -> None:
        """Begin a Trackio run; a resumed run continues its own, by its name."""
        import trackio

        self._run = run
        name = f"{run.name} #{run.run_id[:4]}"
        config = {**run.columns, "run_id": run.run_id}
        resume = "allow" if run.after_round else "never"
        trackio.init(self._project, name, run.group, config=config, resume=resume, embed=False)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of one round."""
        import trackio

        trackio.log(finite_numbers(row), step=row["round"])

    def log_model(self, path: Path) -> None:
        """Do nothing: the file is in the run directory already."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Log the best round's numbers and the figures, and end the Trackio run."""
        import trackio

        if status == "finished":
            drawn = figures(self._run.directory, self._run.metrics)
            images = {f"final/{name}": trackio.Image(pixels[..., :3]) for name, pixels in drawn.items()}
            trackio.log({**of_best_round(summary), **images}, step=summary["round"])
        trackio.finish()
