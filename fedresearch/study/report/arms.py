"""How a report's curves are arranged: the arms that are compared, with their looks, and their panels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from fedresearch.config.options import group_of
from fedresearch.dotted_keys import as_json
from fedresearch.errors import InputError
from fedresearch.runs.labels import NO_NAMES, Names, declared_labels, experiment_label
from fedresearch.study.report.cells import Cell, Study

# Okabe and Ito, "Color Universal Design", 2008; without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#9A9A9A"
# Lengths of a line and the gap after it, in line widths; (): a line without gaps.
DASHES = ((), (5, 1.5), (5, 1.5, 1, 1.5), (1, 1))
MARKERS = "os^vDP<>"
# More curves than this cannot be distinguished in one panel.
MOST_HIGHLIGHTED = 5
# What is compared, if nobody says it: the first of these groups that varies.
_COMPARED = ("strategy", "optimizer", "model", "sampling", "availability", "channel", "schedule")


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared, with the same look in all figures, pages and tables of a report.

    Parameters
    ----------
    label : str
        What papers call it.
    colour : str
        ``#RRGGBB``; grey if it is not highlighted.
    dash : tuple of float
        Lengths of a line and the gap after it, and so on, in line widths; () for a line without gaps.
    marker : str
        Matplotlib's name of a mark.
    is_highlighted : bool
        Whether it is among those that a reader should look at.
    """

    label: str
    colour: str
    dash: tuple[float, ...]
    marker: str
    is_highlighted: bool = True


@dataclass(frozen=True)
class Arrangement:
    """Arms and panels, and the place of each cell.

    Parameters
    ----------
    arm_keys, panel_keys : sequence of str
        The keys that distinguish arms, and those that distinguish panels.
    arms : sequence of Arm
        In the order of their values. Where nothing distinguishes arms, the only one is called by its strategy.
    panels : sequence of str
        The panels' labels; one, "", where nothing but the arms varies.
    places : mapping
        A cell's label to its panel and its arm, as places in these sequences.
    names : mapping
        What the user calls things, as ``--label`` gives it.
    """

    arm_keys: Sequence[str]
    panel_keys: Sequence[str]
    arms: Sequence[Arm]
    panels: Sequence[str]
    places: Mapping[str, tuple[int, int]]
    names: Names = field(default_factory=dict)

    def arm(self, cell: Cell) -> Arm:
        """Return a cell's arm."""
        return self.arms[self.places[cell.label][1]]

    def panel(self, cell: Cell) -> str:
        """Return the label of a cell's panel."""
        return self.panels[self.places[cell.label][0]]


def arrange(
    study: Study,
    means: Mapping[str, float],
    *,
    larger_is_better: bool,
    tuned: Sequence[str] = (),
    facet: Sequence[str] = (),
    arms: Sequence[str] = (),
    highlight: Sequence[str] = (),
    baseline: Sequence[str] = (),
    names: Names = NO_NAMES,
) -> Arrangement:
    """Arrange a study's cells.

    The arms are the values of the keys in ``arms`` and of their options, or of all that are not those of ``facet``;
    if nobody says it, of the first group of ``_COMPARED`` that varies, or else of the first key. Each combination of
    the other keys is a panel.

    Parameters
    ----------
    study : Study
        The cells.
    means : mapping
        A cell's label to the mean of its selected numbers; NaN without any.
    larger_is_better : bool
        Whether a larger mean is a better one.
    tuned : sequence of str
        Keys whose values were chosen for each cell; they distinguish nothing where the others do.
    facet, arms : sequence of str
        Full names of keys.
    highlight : sequence of str
        The labels of arms to highlight, or parts of them; if empty, the best ``MOST_HIGHLIGHTED`` of more arms.
    baseline : sequence of str
        Labels of cells that others are compared with; their arms are highlighted too.
    names : mapping
        What the user calls things.

    Raises
    ------
    InputError
        If a text of ``highlight`` is part of no arm's label.
    """
    keys = [key for key in study.keys if key in study.other_keys([], tuned)]
    asked = [key for key in study.keys if key in arms or (key in keys and _in(key, arms) and not _in(key, facet))]
    arm_keys = asked or ([key for key in keys if not _in(key, facet)] if facet else [*_compared(keys)])
    panel_keys = [key for key in keys if key not in arm_keys]
    of_arms, of_panels = (label_cells(study, chosen, names) for chosen in (arm_keys, panel_keys))
    if not arm_keys:
        of_arms = dict.fromkeys(of_arms, _only_strategy(study, names))
    places = {cell.label: (of_panels[cell.label], of_arms[cell.label]) for cell in study.cells}
    labels, panels = [*dict.fromkeys(of_arms.values())], [*dict.fromkeys(of_panels.values())]
    chosen = _highlighted(labels, of_arms, means, highlight, baseline, larger_is_better=larger_is_better)
    looks = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=True)
    return Arrangement(
        arm_keys,
        panel_keys,
        [Arm(label, *next(looks)) if label in chosen else Arm(label, GREY, (), "", False) for label in labels],
        panels,
        {cell: (panels.index(panel), labels.index(arm)) for cell, (panel, arm) in places.items()},
        names,
    )


def _in(key: str, keys: Sequence[str]) -> bool:
    """Return whether a key is one of some keys, or belongs to an option that is."""
    return key in keys or group_of(key) in keys


def _compared(keys: Sequence[str]) -> Iterator[str]:
    """Yield the keys of the first group that varies among those that are compared; else the first key."""
    for group in _COMPARED:
        found = [key for key in keys if _in(key, [group])]
        if found:
            yield from found
            return
    yield from keys[:1]


def label_cells(study: Study, keys: Sequence[str], names: Names) -> dict[str, str]:
    """Return what papers call each cell by some keys; with the keys' own names where two would have the same label."""
    values = {cell.label: {key: cell.keys[key] for key in keys if key in cell.keys} for cell in study.cells}
    labels = {cell.label: experiment_label(values[cell.label], option_labels(cell), names) for cell in study.cells}
    told: dict[str, set[str]] = {}
    for name, label in labels.items():
        told.setdefault(label, set()).add(as_json(values[name]))
    return {
        name: label if len(told[label]) == 1 else study.describe(values[name]) or label or "all runs"
        for name, label in labels.items()
    }


def _only_strategy(study: Study, names: Names) -> str:
    """Return what papers call the strategy of all cells; "" where these have several."""
    choices = {cell.label: next(iter(cell.runs.values())).record["choices"]["strategy"] for cell in study.cells}
    labels = {experiment_label({"strategy": choices[cell.label]}, option_labels(cell), names) for cell in study.cells}
    return labels.pop() if len(labels) == 1 else ""


def option_labels(cell: Cell) -> dict[str, str]:
    """Return what the options of a cell's runs are called."""
    run = next(iter(cell.runs.values()))
    return declared_labels(run.record["config"])


def _highlighted(
    labels: Sequence[str],
    of_arms: Mapping[str, str],
    means: Mapping[str, float],
    highlight: Sequence[str],
    baseline: Sequence[str],
    *,
    larger_is_better: bool,
) -> set[str]:
    if highlight:
        chosen = {text: {label for label in labels if text.casefold() in label.casefold()} for text in highlight}
        if absent := [text for text, found in chosen.items() if not found]:
            raise InputError(f"--highlight {absent[0]} is part of no arm's label; the arms are {'; '.join(labels)}")
        return set().union(*chosen.values())
    if len(labels) <= MOST_HIGHLIGHTED:
        return {*labels}
    found: dict[str, list[float]] = {}
    for cell, label in of_arms.items():
        found.setdefault(label, []).append(means.get(cell, np.nan))
    sign = -1 if larger_is_better else 1
    known = [label for label in labels if np.isfinite(found[label]).any()]
    best = sorted(known, key=lambda label: sign * float(np.nanmean(found[label])))
    kept = dict.fromkeys(of_arms[cell] for cell in baseline)
    return {*[*kept, *(label for label in best if label not in kept)][:MOST_HIGHLIGHTED]}
