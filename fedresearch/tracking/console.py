"""What a run shows while it runs: a live bar on a terminal, a line a round elsewhere, and a small table at the end.

A job of a sweep shows nothing on a terminal, where the sweep shows all its jobs, and elsewhere its name in each line.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import filesize
from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fedresearch.errors import printable
from fedresearch.tracking.tracker import RunInfo


class Console:
    """Shows a run's progress and, at its end, its results and its directory.

    Parameters
    ----------
    terminal : rich.console.Console or None
        Where to print; None is standard output.
    job : str
        The job's name in its sweep; "" for a single run.
    """

    def __init__(self, terminal: Terminal | None = None, job: str = "") -> None:
        self._terminal = terminal or Terminal(quiet=bool(job) and Terminal().is_interactive)
        self._job = f"{printable(job)}  " if job else ""

    def start(self, run: RunInfo) -> None:
        """Show the bar, if this is a terminal."""
        self._run = run
        self._round, self._known = run.after_round, dict[str, Any]()
        first = [form.format(metric) for metric in run.metrics[:1] for form in ("eval/{}", "personal/{}_mean")]
        self._shown = ("train/loss", "eval/loss", *first)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=self._terminal,
            refresh_per_second=2,  # seldom: its thread takes time from the training
            expand=True,
            transient=True,
        )
        self._bar = self._progress.add_task(
            self._position(run.after_round), total=run.num_rounds, completed=run.after_round, figures=""
        )
        if self._terminal.is_interactive and not self._terminal.quiet:
            self._progress.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show one round. The bar keeps the last evaluation's figures, a line has those of its round only."""
        self._round = row["round"]
        position = self._position(self._round)
        speed = []
        if self._round:
            speed = [f"{_rate(row['clients/sampled'] / row['time/round_s'])} clients/s", f"{self._time_left(row)} left"]
        if self._terminal.is_interactive:
            self._known |= {name: value for name, value in row.items() if value is not None}
            # Short, for 80 columns: what is not said to be of the training is of the test split.
            name, loss = ("loss", "eval/loss") if "eval/loss" in self._known else ("train loss", "train/loss")
            columns = {name: loss, **{metric: f"eval/{metric}" for metric in self._run.metrics[:1]}}
            named = _named({name: self._known.get(column) for name, column in columns.items()})
            figures = [*map(str.strip, named), *speed]
            self._progress.update(self._bar, completed=self._round, description=position, figures="  ".join(figures))
        else:
            named = _named({name: row.get(name) for name in self._shown})
            self._print(self._job + "  ".join([position, *named, *speed]))

    def log_model(self, path: Path) -> None:
        """Do nothing: the run directory is shown at the end."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Show the results and, on a line of its own, the run directory."""
        if self._terminal.is_interactive:
            self._progress.stop()
        self._print(f"{self._job}{status} after {self._round} of {self._run.num_rounds} rounds")
        results = {name: form for name, form in _results(self._run.metrics).items() if summary.get(name) is not None}
        width = max(map(len, results), default=0)
        for name, shown in results.items():
            on_clients = name.startswith(("clients/", "personal/")) and summary.get("clients/evaluated")
            of = f"  of {on_clients} client{'s' * (on_clients != 1)}" if on_clients else ""
            self._print(f"{self._job}  {name:<{width}}  {shown(summary[name])}{of}")
        self._print(str(self._run.directory))

    def _position(self, server_round: int) -> str:
        num_rounds = str(self._run.num_rounds)
        return f"round {server_round:>{len(num_rounds)}}/{num_rounds}"

    def _time_left(self, row: Mapping[str, Any]) -> str:
        return duration(row["time/total_s"] / row["round"] * (self._run.num_rounds - row["round"]))

    def _print(self, line: str) -> None:
        # Not by rich, which takes as long as a round of ten small clients.
        if not self._terminal.quiet:
            print(line, file=self._terminal.file, flush=True)


def _named(figures: Mapping[str, float | None]) -> list[str]:
    return [f"{name} {_figure(name, value)}" for name, value in figures.items() if value is not None]


def _figure(name: str, value: float) -> str:
    """Return a metric with four decimals, and a loss, which may have any size, with four digits."""
    return f"{value:<#8.4g}" if "loss" in name else f"{value:.4f}"


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.1f}"


def duration(seconds: float) -> str:
    """Return a time to read, of three digits or so."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _results(metrics: Sequence[str]) -> dict[str, Callable[[Any], str]]:
    """Return the columns that are shown at the end, and how; of the clients' own models first, where they are."""
    personal, clients = (
        [f"{scope}/{metric}_{part}" for metric in metrics for part in ("mean", "worst")]
        for scope in ("personal", "clients")
    )
    return {
        **dict.fromkeys(personal, "{:.4f}".format),
        "eval/loss": "{:#.4g}".format,
        **dict.fromkeys([f"eval/{metric}" for metric in metrics] + clients, "{:.4f}".format),
        "comm/bytes_up_total": filesize.decimal,
        "comm/bytes_down_total": filesize.decimal,
        "time/total_s": duration,
    }
