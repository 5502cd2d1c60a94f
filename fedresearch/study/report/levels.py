"""What distinguishes cells in tables: a column, or a row of heads, for each group of keys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedresearch.config.options import group_of
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names, key_title
from fedresearch.study.report.arms import Arrangement, label_cells
from fedresearch.study.report.cells import Cell, Study, sort_key
from fedresearch.study.report.tables import Entry


@dataclass(frozen=True)
class Level:
    """The keys of one group, such as a strategy and its numbers.

    Parameters
    ----------
    keys : sequence of str
        The keys.
    title : str
        The head of its column.
    entries : mapping
        A cell's label to its entry in that column.
    heads : mapping
        A cell's label to its head where a table has the level across. They are in their order.
    """

    keys: Sequence[str]
    title: str
    entries: Mapping[str, Entry]
    heads: Mapping[str, str]

    def has(self, cell: Cell) -> bool:
        """Return whether a cell has a value at this level."""
        return any(key in cell.keys for key in self.keys)


def levels(study: Study, keys: Sequence[str], names: Names) -> Iterator[Level]:
    """Yield a level for each group of some keys."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(group_of(key), []).append(key)
    for group, own in groups.items():
        labels = label_cells(study, own, names)
        ordered = sorted(study.cells, key=lambda cell: [sort_key(cell.keys.get(key)) for key in own])
        heads = {cell.label: labels[cell.label] for cell in ordered}
        if own == [group] or len(own) > 1:
            yield Level(own, key_title(group, names), {cell: Entry(text, text) for cell, text in heads.items()}, heads)
        else:
            entries = {cell.label: _value(cell, own[0], names) for cell in ordered}
            yield Level(own, key_title(own[0], names), entries, heads)


def _value(cell: Cell, key: str, names: Names) -> Entry:
    if key not in cell.keys:
        return Entry("")
    value = cell.keys[key]
    text = names.get(f"{key}={format_value(value)}", format_value(value))
    return Entry(text, value if isinstance(value, int | float) else text)


def cell_levels(study: Study, arrangement: Arrangement) -> list[Level]:
    """Return the levels of a table with a row for each cell: its panel, its arm, and what was tuned for it."""
    first = (*arrangement.panel_keys, *arrangement.arm_keys)
    tuned = [key for key in study.keys if key not in first]
    found = [
        level
        for keys in (arrangement.panel_keys, arrangement.arm_keys, tuned)
        for level in levels(study, keys, arrangement.names)
    ]
    only = {cell.label: arrangement.arm(cell).label for cell in study.cells}
    title = key_title("strategy", arrangement.names)
    return found or [Level([], title, {cell: Entry(text, text) for cell, text in only.items()}, {})]


def in_order(cells: Sequence[Cell], found: Sequence[Level]) -> list[Cell]:
    """Return cells in the order of their heads at some levels."""
    places = [{head: place for place, head in enumerate(dict.fromkeys(level.heads.values()))} for level in found]
    return sorted(
        cells,
        key=lambda cell: [
            place.get(level.heads.get(cell.label, ""), 0) for level, place in zip(found, places, strict=True)
        ],
    )


def cell_entries(cell: Cell, found: Sequence[Level], marks: Mapping[str, str]) -> list[Entry]:
    """Return a cell's entry at each level, the last with the cell's mark.

    Parameters
    ----------
    marks : mapping
        By cell's label.
    """
    *others, last = (level.entries[cell.label] for level in found)
    return [*others, Entry(marked(last.text, cell, marks), last.sort)]


def marked(text: str, cell: Cell, marks: Mapping[str, str]) -> str:
    """Return a text about a cell with the cell's mark behind it."""
    return f"{text} {marks.get(cell.label, '')}".strip()
