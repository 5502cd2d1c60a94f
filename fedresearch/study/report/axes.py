"""The axes of curves and of targets: rounds, bytes, local steps and seconds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich import filesize

from fedresearch.study.report.load import Column, LoadedRun
from fedresearch.tracking.console import duration as format_seconds


@dataclass(frozen=True)
class Axis:
    """An axis along which runs make progress.

    Parameters
    ----------
    label : str
        For figures.
    format : callable
        A place on the axis to its text.
    progress : callable
        A run to its place after each round, float64 (rounds,); NaN where the run has not recorded it.
    """

    label: str
    format: Callable[[float], str]
    progress: Callable[[LoadedRun], Column]


AXES = {
    "rounds": Axis(
        "Round",
        lambda rounds: f"{rounds:.0f}" if rounds >= 10 else f"{rounds:.2g}",
        lambda run: run.column("round"),
    ),
    "bytes": Axis(
        "Bytes sent",
        lambda count: filesize.decimal(round(count)),
        lambda run: run.column("comm/bytes_up_total") + run.column("comm/bytes_down_total"),
    ),
    "steps": Axis(
        "Local steps",
        lambda steps: f"{steps:,.0f}",
        lambda run: np.cumsum(np.where(run.column("round") > 0, run.column("local/steps"), 0)),
    ),
    "seconds": Axis("Wall-clock seconds", format_seconds, lambda run: run.column("time/total_s")),
}
