"""The figures that show arms in all settings at once, where there are enough of these: a profile, and mean ranks."""

from collections.abc import Iterator, Mapping

import numpy as np

from fedresearch.drawings import curves, ranking
from fedresearch.drawings.picture import Picture, concatenated
from fedresearch.runs.columns import is_share, larger_is_better
from fedresearch.runs.labels import without_unit
from fedresearch.study.report.arms import Arrangement
from fedresearch.study.report.cells import Study
from fedresearch.study.report.looks import MAX_DRAWN, looks, numbers, page
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.ranks import is_whole
from fedresearch.study.report.statistics import critical_difference, mean_ranks, performance_profile

# Fewer runs in fewer settings give steps and bands from which nothing can be read.
_MIN_SETTINGS, _MIN_SEEDS = 3, 3
# Demsar 2006 has settings as blocks: with fewer, few pairs could differ. Two arms need no correction for pairs.
_MIN_RANKED_SETTINGS, _MIN_RANKED_ARMS = 5, 3
_NUM_THRESHOLDS = 201

Settings = Mapping[str, Mapping[str, Outcome]]


def overall_figures(
    study: Study, question: Question, outcomes: Mapping[str, Outcome], arrangement: Arrangement
) -> Iterator[tuple[str, Picture]]:
    """Yield the performance profile and the diagram of mean ranks, over the panels in which all arms are whole.

    Parameters
    ----------
    outcomes : mapping
        By cell's label.
    """
    settings: dict[str, dict[str, Outcome]] = {}
    for cell in study.cells:
        outcome = outcomes[cell.label]
        if is_whole(outcome):
            settings.setdefault(arrangement.panel(cell), {})[arrangement.arm(cell).label] = outcome
    num_arms = len(arrangement.arms)
    settings = {panel: found for panel, found in settings.items() if len(found) == num_arms}
    repeated = {
        panel: found
        for panel, found in settings.items()
        if all(len(outcome.values) >= _MIN_SEEDS for outcome in found.values())
    }
    if num_arms > 1 and len(repeated) >= _MIN_SETTINGS and is_share(question.metric, study.declared):
        yield "profile", _profile(study, question, repeated, arrangement)
    if _MIN_RANKED_ARMS <= num_arms <= MAX_DRAWN and len(settings) >= _MIN_RANKED_SETTINGS:
        yield "ranks", _ranks(study, question, settings, arrangement)


def _profile(study: Study, question: Question, settings: Settings, arrangement: Arrangement) -> Picture:
    scores = {
        arm.label: [[*found[arm.label].values.values()] for found in settings.values()] for arm in arrangement.arms
    }
    known = np.concatenate([stratum for strata in scores.values() for stratum in strata])
    margin = 0.02 * np.ptp(known) or 0.01
    thresholds = np.linspace(known.min() - margin, known.max(), _NUM_THRESHOLDS)
    shown = numbers(study, question, question.metric)
    parts = []
    for arm, strata in scores.items():
        share, low, high = performance_profile(strata, thresholds)
        parts.append(
            {"panel": "", "arm": arm, "seed": "", "x": shown["scale"] * thresholds}
            | {"y": share, "low": low, "high": high}
        )
    name = without_unit(shown["y_label"])
    spec = {
        "panels": [""],
        "arms": looks(arrangement.arms),
        "x_label": f"{name} τ (%)",
        "x_unit": "",
        "y_label": "Runs above τ (%)",
        "scale": 100,
        "limits": [0, 1],
        "unseen": 0,
        "targets": [],
        **page(question),
    }
    caption = (
        f"Performance profile (Agarwal et al. 2021) of {question.selection.caption}: the share of runs above each τ, "
        f"over {len(settings)} settings of equal weight, with the 95 % interval of a bootstrap stratified by setting "
        f"as a band. It is drawn from {_MIN_SETTINGS} settings on in which every arm has {_MIN_SEEDS} or more runs."
    )
    return Picture(curves, concatenated(parts, ("panel", "arm", "seed", "x", "y", "low", "high")), spec, caption)


def _ranks(study: Study, question: Question, settings: Settings, arrangement: Arrangement) -> Picture:
    labels = [arm.label for arm in arrangement.arms]
    means = np.array([[found[label].mean for label in labels] for found in settings.values()])
    ranks = mean_ranks(means, larger_is_better=larger_is_better(question.metric, study.declared))
    difference = critical_difference(len(labels), len(settings))
    spec = {"arms": looks(arrangement.arms), "critical_difference": difference, **page(question)}
    caption = (
        f"Mean ranks of {question.selection.caption}, of the means over seeds in {len(settings)} settings; 1 is the "
        "best. A bar joins arms that Nemenyi's test does not find to differ at the 5 % level: their ranks are less "
        f"than the critical difference of {difference:.2f} apart (Demšar 2006). It is drawn for {_MIN_RANKED_ARMS} to "
        f"{MAX_DRAWN} arms in {_MIN_RANKED_SETTINGS} settings or more."
    )
    parts = [{"arm": label, "rank": rank} for label, rank in zip(labels, ranks, strict=True)]
    return Picture(ranking, concatenated(parts, ("arm", "rank")), spec, caption)
