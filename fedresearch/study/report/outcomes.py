"""The selected number of each run, and what became of each cell's seeds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedresearch.study.report.cells import Cell
from fedresearch.study.report.load import LoadedRun
from fedresearch.study.report.selection import Selection
from fedresearch.study.report.statistics import t_half_width

# Why a run has no number in a mean, and the words for it.
LEFT_OUT = {
    "failed": "failed",
    "diverged": "diverged",
    "stalled": "stalled",
    "unfinished": "unfinished",
    "without": "without the metric",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a cell's seeds.

    Parameters
    ----------
    values : mapping
        Replicate to its selected number, for finished runs that have one.
    left_out : mapping
        Reason, a key of ``LEFT_OUT``, to the number of runs without a number.
    """

    values: Mapping[str, float]
    left_out: Mapping[str, int]

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without any."""
        return float(np.mean([*self.values.values()])) if self.values else math.nan

    @property
    def half_width(self) -> float:
        """Half the 95 % t-interval of the mean."""
        return t_half_width([*self.values.values()])


def select_values(runs: Iterable[LoadedRun], selection: Selection) -> dict[Path, float]:
    """Return the selected number of each run, by directory; NaN where a run has none."""
    return {run.directory: selection.choose(run) for run in runs}


def find_outcome(cell: Cell, selected: Mapping[Path, float]) -> Outcome:
    """Return the selected numbers of a cell's finished runs, and the count of its other runs."""
    values, left_out = {}, Counter[str]()
    for replicate, run in cell.runs.items():
        if run.state != "finished":
            left_out[run.state if run.state in LEFT_OUT else "unfinished"] += 1
        elif math.isfinite(selected[run.directory]):
            values[replicate] = selected[run.directory]
        else:
            left_out["without"] += 1
    return Outcome(values, left_out)
