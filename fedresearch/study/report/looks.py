"""What a report's figures have in common: sizes and fonts, the looks of arms, and the axes of columns."""

from collections.abc import Sequence
from typing import Any

from fedresearch.runs.columns import is_share
from fedresearch.study.report.arms import Arm, Arrangement
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.question import Question

# The width of a figure with one panel, and of one with more, in inches; and fonts that go with the venue's text.
STYLES = {
    "": (6.3, 6.3, ["DejaVu Sans"]),
    "neurips": (5.5, 5.5, ["STIXGeneral", "DejaVu Sans"]),
    "icml": (3.25, 6.75, ["STIXGeneral", "DejaVu Sans"]),
    "ieee": (3.5, 7.16, ["STIXGeneral", "DejaVu Sans"]),
}
# More lines or rows than this cannot be distinguished in one figure; the tables have them all.
MAX_DRAWN = 16
MAX_PANELS = 12


def page(question: Question, num_panels: int = 1) -> dict[str, Any]:
    """Return a figure's width and font."""
    one, two, font = STYLES[question.style]
    return {"width": one if num_panels == 1 else two, "font": font}


def looks(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Return what figures draw arms with, by their labels."""
    return {arm.label: {name: value for name, value in vars(arm).items() if name != "label"} for arm in arms}


def numbers(study: Study, question: Question, column: str) -> dict[str, Any]:
    """Return what a figure's axis needs to know of a column: label, scale, and what its numbers can be."""
    share = is_share(column, study.declared)
    low = 0 if share or "loss" in column or column == "update/norm" else -1 if column == "update/cosine" else None
    high = 1 if share or column == "update/cosine" else None
    label, scale = study.column_label(column, question.names), study.scale(column)
    return {"y_label": label, "scale": scale, "limits": [low, high]}


def drawn_panels(
    cells: Sequence[Cell], arrangement: Arrangement
) -> tuple[list[str], dict[str, dict[str, Any]], list[Cell], str]:
    """Return the panels that are drawn, the arms in them, their cells, and a sentence on panels that are not drawn."""
    found = {arrangement.panel(cell) for cell in cells}
    panels = [panel for panel in arrangement.panels if panel in found]
    drawn = [cell for cell in cells if arrangement.panel(cell) in panels[:MAX_PANELS]]
    arms = {arrangement.arm(cell).label for cell in drawn}
    left_out = f" Not drawn: {'; '.join(panels[MAX_PANELS:])}." if len(panels) > MAX_PANELS else ""
    drawn_looks = looks([arm for arm in arrangement.arms if arm.label in arms])
    return panels[:MAX_PANELS], drawn_looks, drawn, left_out


def in_order_of_panels(cells: Sequence[Cell], arrangement: Arrangement) -> list[Cell]:
    """Return cells by their panels, and then by their arms."""
    return sorted(cells, key=lambda cell: arrangement.places[cell.label])


def cell_name(cell: Cell, arrangement: Arrangement) -> str:
    """Return a cell's arm and panel in words."""
    return ", ".join(filter(None, (arrangement.arm(cell).label, arrangement.panel(cell)))) or "all runs"


def excess(num_all: int) -> str | None:
    """Return the legend's title where not all lines or cells are drawn."""
    return f"{MAX_DRAWN} of {num_all} drawn" if num_all > MAX_DRAWN else None
