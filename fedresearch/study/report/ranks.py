"""The best cell of each panel, and those that are not significantly worse."""

from collections.abc import Mapping, Sequence
from typing import Literal

from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.statistics import Paired, holm, paired

LEVEL = 0.05
Style = Literal["", "best", "close"]


def pair(outcome: Outcome, baseline: Outcome) -> Paired:
    """Return the differences of a cell's numbers to those of another on the seeds that both have."""
    shared = [seed for seed in outcome.values if seed in baseline.values]
    return paired([outcome.values[seed] for seed in shared], [baseline.values[seed] for seed in shared])


def is_whole(outcome: Outcome) -> bool:
    """Return whether a cell's mean may be ranked: not where a run diverged or stalled, as it is over the others."""
    return bool(outcome.values) and not {"diverged", "stalled"} & outcome.left_out.keys()


def find_styles(
    panels: Sequence[Sequence[str]], outcomes: Mapping[str, Outcome], *, larger_is_better: bool
) -> dict[str, Style]:
    """Return how tables set the mean of each cell that stands out in its panel.

    The best mean is ``best``, and so are means that equal it. Means are ``close`` where the paired t-test against the
    best, on shared seeds and with Holm's correction for the panel, gives p >= ``LEVEL``; without two shared seeds, or
    where all differences are the same, there is no test. A cell of which a run diverged or stalled does not stand
    out, since its mean is over the other runs. Nor does any in a panel of one cell.

    Parameters
    ----------
    panels : sequence of sequence of str
        The labels of the cells that are compared with each other.
    outcomes : mapping
        By cell's label.
    larger_is_better : bool
        Whether a larger mean is a better one.
    """
    styles: dict[str, Style] = {}
    for panel in panels:
        whole = {label: outcomes[label] for label in panel if is_whole(outcomes[label])}
        if len(whole) < 2:
            continue
        first = (max if larger_is_better else min)(whole, key=lambda label: whole[label].mean)
        top = whole[first].mean
        tied = [label for label, each in whole.items() if abs(each.mean - top) <= 1e-12 * abs(top)]
        rest = [label for label in whole if label not in tied]
        p_values = holm([pair(whole[label], whole[first]).t_p for label in rest])
        styles |= dict.fromkeys(tied, "best")
        styles |= {label: "close" for label, p in zip(rest, p_values, strict=True) if p >= LEVEL}
    return styles
