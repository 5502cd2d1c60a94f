"""Tables with the values of some keys down and those of others across, as papers have them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names
from fedresearch.study.report.arms import Arrangement
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.final import mean_caption, mean_entry
from fedresearch.study.report.levels import Level, in_order, levels, marked
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.ranks import Style
from fedresearch.study.report.statistics import Duration, format_duration
from fedresearch.study.report.tables import Entry, Table, legend, none_if_nan
from fedresearch.study.report.targets import SIGNS, partial_note, target_texts

# More panels than this are across a table only if somebody asks for it.
_MOST_ACROSS = 12


def grid_tables(
    study: Study,
    question: Question,
    outcomes: Mapping[str, Outcome],
    durations: Mapping[float, Mapping[str, Mapping[str, Duration]]],
    marks: Mapping[str, str],
    arrangement: Arrangement,
    styles: Mapping[str, Style],
) -> Iterator[Table]:
    """Yield the grid of final performance and one of rounds for each target.

    Where no grid is asked for, arms are down and panels are across; there is none without several of both.

    Parameters
    ----------
    outcomes, marks, styles : mapping
        By cell's label.
    durations : mapping
        Target to what :func:`durations_to` returns.
    """
    by_rule = len(arrangement.arms) > 1 and 1 < len(arrangement.panels) <= _MOST_ACROSS
    if not question.grid and not by_rule:
        return
    rows, cols = question.grid or (arrangement.arm_keys, arrangement.panel_keys)
    others = study.other_keys((*rows, *cols), question.tuned)
    groups = ([level.keys[0] for level in levels(study, keys, question.names)] for keys in (rows, cols))
    by = " and ".join(", ".join(map(study.short_name, keys)) for keys in groups)
    scale = study.scale(question.metric)

    def of_means(cell: Cell) -> Entry:
        style = styles.get(cell.label, "")
        return mean_entry(outcomes[cell.label], scale, style, marks.get(cell.label, ""))

    title, head = f"Final performance by {by}", study.column_label(question.metric, question.names)
    caption = f"{question.selection.caption}: {mean_caption(study, outcomes, arrangement, styles)}"
    signs = {"–": "no finished run"}
    yield pivot(study, rows, cols, others, of_means, "final_grid", title, caption, head, question.names, signs)
    for target, of_cells in durations.items():

        def of_rounds(cell: Cell, of_cells: Mapping[str, Mapping[str, Duration]] = of_cells) -> Entry:
            rounds = of_cells[cell.label]["rounds"]
            text = format_duration(rounds, AXES["rounds"].format)
            return Entry(marked(text, cell, marks), none_if_nan(rounds.median))

        metric, value = target_texts(study, question, target)
        caption = f"Rounds until {metric} first reaches {value}: median over seeds (range).{partial_note(study)}"
        title, head = f"Rounds to {value} by {by}", f"Rounds to {value}"
        name = f"target_{format_value(target)}_grid"
        yield pivot(study, rows, cols, others, of_rounds, name, title, caption, head, question.names, SIGNS)


def pivot(
    study: Study,
    rows: Sequence[str],
    cols: Sequence[str],
    others: Sequence[str],
    entry: Callable[[Cell], Entry],
    table_id: str,
    title: str,
    caption: str,
    head: str,
    names: Names,
    signs: Mapping[str, str],
) -> Table:
    """Return a table with the values of some keys down and those of others across; further keys have columns too.

    Parameters
    ----------
    rows, cols, others : sequence of str
        Full names of keys. Those of one group, such as a strategy and its numbers, share a column or a row of heads.
    entry : callable
        A cell to its entry.
    head : str
        What stands over all columns of entries: what they are.
    names : mapping
        What the user calls things.
    signs : mapping
        What the first characters of entries mean.
    """
    down = [level for keys in (others, rows) for level in levels(study, keys, names)]
    across = [*levels(study, cols, names)]
    shown = [cell for cell in study.cells if {*rows} & cell.keys.keys() and {*cols} & cell.keys.keys()]
    lines, paths = _first_cells(shown, down), _first_cells(shown, across)
    cells = {(_path(cell, down), _path(cell, across)): cell for cell in shown}
    body: list[Sequence[Entry]] = []
    records = []
    for line, first in lines.items():
        entries = [entry(cells[line, path]) if (line, path) in cells else Entry("") for path in paths]
        body.append([*(level.entries[first.label] for level in down), *entries])
        record: dict[str, Any] = {key: first.keys.get(key) for key in (*others, *rows)}
        values = zip(paths.values(), entries, strict=True)
        records.append(record | {_described(cell, cols): each.sort for cell, each in values})
    columns = [*(level.title for level in down), *map(", ".join, paths)]
    heads = [*((level.title,) for level in down), *((head, *path) for path in paths)]
    return Table(table_id, title, caption, columns, body, records, legend(body, signs), heads)


def _path(cell: Cell, found: Sequence[Level]) -> tuple[str, ...]:
    return tuple(level.heads[cell.label] for level in found)


def _first_cells(cells: Sequence[Cell], found: Sequence[Level]) -> dict[tuple[str, ...], Cell]:
    """Return the heads that cells have at some levels, in order, each with the first cell that has them."""
    firsts: dict[tuple[str, ...], Cell] = {}
    for cell in in_order(cells, found):
        firsts.setdefault(_path(cell, found), cell)
    return firsts


def _described(cell: Cell, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={format_value(cell.keys[key])}" for key in keys if key in cell.keys)
