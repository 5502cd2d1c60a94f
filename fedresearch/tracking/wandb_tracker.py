"""Weights & Biases: one W&B run per experiment, one row per round, never a reason for a run to stop."""

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedresearch.errors import named, one_line
from fedresearch.runs.client_table import CLIENTS, load_clients
from fedresearch.tracking.figures import client_values, figures
from fedresearch.tracking.tracker import RunInfo

_MAX_TABLE_ROWS = 200_000  # W&B takes no more


class WandbTracker:
    """Mirrors a run to Weights & Biases.

    A failure of W&B is reported in one line and the run continues: offline if W&B could not be reached at the start,
    without W&B otherwise. W&B asks no questions and writes below ``wandb/`` of the run directory only.

    Parameters
    ----------
    mode : {"auto", "online", "offline", "disabled"}
        ``auto`` is what the environment variable WANDB_MODE says, else online if an API key is configured, else
        offline.
    project : str
        W&B project.
    entity : str or None
        W&B user or team; None is the key's default.
    tags : sequence, str or None
        Tags besides the options chosen: texts or numbers, or one text with commas between them.
    group : str, int, float or None
        W&B group; None: the run's, which the seeds of one ablation cell share.
    job_type : str
        W&B job type.
    log_model : bool
        Whether to store the final model as an artifact.
    log_clients : bool
        Whether to log the clients' table, its last 200,000 rows, when the run ends.
    """

    def __init__(
        self,
        *,
        mode: str = "auto",
        project: str = "fedresearch",
        entity: str | None = None,
        tags: Sequence[str | float] | str | None = None,
        group: str | float | None = None,
        job_type: str = "train",
        log_model: bool = False,
        log_clients: bool = False,
    ) -> None:
        self._mode, self._project, self._entity = mode, project, entity
        self._tags = [tag for tag in tags.split(",") if tag] if isinstance(tags, str) else tags or ()
        self._group, self._job_type, self._log_model = group, job_type, log_model
        self._log_clients = log_clients
        self._wandb: Any = None  # W&B's run; None before the start, and for good once something failed

    def start(self, run: RunInfo) -> None:
        """Begin a W&B run, offline if online is not possible."""
        self._run, self._in_parts = run, run.after_round > 0
        with self._surviving("starting"), self._own_folders():
            mode = self._mode
            try:
                mode, reason = self._resolved_mode()
                if mode == "disabled":
                    return
                self._wandb = self._init(run, mode)
            except Exception as error:
                if mode == "offline":
                    raise
                mode = "offline"
                reason = f"going online failed ({one_line(named(error))}), so the run is recorded offline"
                import wandb

                wandb.teardown()  # with its service process, in which the try that failed has the run's id
                self._wandb = self._init(run, mode)
            if mode == "offline":
                _say(f"{reason}; to upload it: {self._how_to_sync()}")
            elif self._wandb.url:
                _say(self._wandb.url)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one round as one row."""
        with self._surviving("logging a round"):
            if self._wandb:
                # W&B drops a round that it has. The last round's row waits for the final model's figures.
                self._wandb.log(_loggable(row), step=row["round"], commit=row["round"] < self._run.num_rounds)

    def log_model(self, path: Path) -> None:
        """Store the model as an artifact of the run, if asked to."""
        with self._surviving("storing the model"), self._own_folders():
            if self._wandb and self._log_model:
                self._wandb.log_model(path)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Write the summary, and mark the W&B run as finished or failed."""
        with self._surviving("finishing"), self._own_folders():
            if self._wandb:
                import wandb

                if status == "finished" and "round" in summary:
                    self._log_media(summary["round"])
                self._wandb.summary.update(_loggable(summary))
                self._wandb.finish(exit_code=0 if status == "finished" else 1)
                # Ends W&B's service process, which keeps this run's directories: the next run has its own.
                wandb.teardown()
        self._wandb = None

    def _log_media(self, last_round: int) -> None:
        """Log the figures of the run, and what was asked for, in the last round's row, or in one of their own."""
        import wandb

        directory, metrics = self._run.directory, self._run.metrics
        media: dict[str, Any] = {
            f"final/{name}": wandb.Image(figure) for name, figure in figures(directory, metrics).items()
        }
        _, values = client_values(directory, metrics)
        if values:
            media["final/clients_histogram"] = wandb.Histogram(values, num_bins=20)
        if self._log_clients and (directory / CLIENTS).exists():
            media["final/clients_table"] = wandb.Table(dataframe=load_clients(directory).tail(_MAX_TABLE_ROWS))
        step = last_round + (last_round < self._run.num_rounds)  # a run that reached its target has logged its last
        self._wandb.log({"round": last_round, **media}, step=step, commit=True)

    def _resolved_mode(self) -> tuple[str, str]:
        """Return W&B's mode, and why, should it be offline."""
        if self._mode != "auto":
            return self._mode, f"tracker.mode={self._mode}"
        if mode := os.environ.get("WANDB_MODE"):
            return mode, f"WANDB_MODE={mode}"
        import wandb

        if wandb.login(prompt=False, verify=False):  # looks for a key; no prompt, no network
            return "online", ""
        return "offline", "no API key is configured, so the run is recorded offline"

    def _how_to_sync(self) -> str:
        """Return the command; a run that went on has several parts, which are uploaded together."""
        part = Path(self._wandb.dir).parent  # .../wandb/offline-run-DATE-ID/files
        if self._in_parts:
            return f"wandb sync {shlex.quote(str(part.parent))}/offline-run-*"
        return f"wandb sync {shlex.quote(str(part))}"

    def _init(self, run: RunInfo, mode: str) -> Any:
        import wandb

        # What the config's rules let through is text of a length that W&B takes; the names of options may be longer.
        tags = dict.fromkeys(_fitting(tag, 64) for tag in (*run.tags, *self._tags))
        wandb_run = wandb.init(
            mode=mode,  # type: ignore[arg-type]  # what W&B does not know, it refuses
            project=str(self._project),
            entity=str(self._entity) if self._entity else None,
            id=run.run_id,
            resume="allow",  # a resumed run is the same run
            name=_fitting(run.name, 128),
            group=str(self._group or run.group),
            job_type=str(self._job_type) if self._job_type else None,
            tags=[*tags],
            config={**run.columns, "config": run.config},
            dir=run.directory,
            reinit="finish_previous",  # by default, a second init returns the first one's run
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=10,  # seconds; W&B takes twice as long to give up
                finish_timeout=60,  # 0, the default, waits for the network for ever
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=1,  # 15 by default: what a killed run loses
            ),
        )
        wandb_run.define_metric("round")
        wandb_run.define_metric("*", step_metric="round")
        return wandb_run

    @contextmanager
    def _surviving(self, doing: str) -> Iterator[None]:
        """If W&B fails, report that and stop using W&B."""
        try:
            yield
        except Exception as error:
            upload = f"; to upload what it has so far: {self._how_to_sync()}" if self._wandb else ""
            self._wandb = None
            _say(f"{doing} failed ({one_line(named(error))}); the run continues without W&B{upload}")

    @contextmanager
    def _own_folders(self) -> Iterator[None]:
        """Give W&B its directories and silence for a while. Logging a row needs neither, and is to be cheap."""
        place = self._run.directory / "wandb"
        ours = {
            "WANDB_DATA_DIR": str(place / "data"),
            "WANDB_CACHE_DIR": str(place / "cache"),
            "WANDB_ARTIFACT_DIR": str(place / "artifacts"),
            "WANDB_SILENT": "true",  # in time for W&B's first words; it also rules out a prompt
        }
        theirs = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in theirs.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _fitting(name: str | float, max_characters: int) -> str:
    """Return a name as text that W&B takes, the end of one that is too long left out."""
    text = str(name)
    return text if len(text) <= max_characters else f"{text[: max_characters - 3]}..."


def _loggable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is no value: one NaN makes W&B's minimum, maximum and mean of a metric NaN for good."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, str) or (value is not None and math.isfinite(value))
    }


def _say(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr, flush=True)
