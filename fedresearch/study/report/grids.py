"""Tables with the values of one key down and those of another across."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedresearch.runs.comparison import format_value
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.final import marked
from fedresearch.study.report.outcomes import Outcome
from fedresearch.study.report.question import Question
from fedresearch.study.report.statistics import Duration, format_duration
from fedresearch.study.report.tables import Entry, Table, format_mean, none_if_nan


def grid_tables(
    study: Study,
    question: Question,
    outcomes: Mapping[str, Outcome],
    durations: Mapping[float, Mapping[str, Mapping[str, Duration]]],
    marks: Mapping[str, str],
) -> Iterator[Table]:
    """Yield the grid of final performance and one of rounds for each target; none where no grid is asked for.

    Parameters
    ----------
    outcomes, marks : mapping
        By cell's label.
    durations : mapping
        Target to what :func:`durations_to` returns.
    """
    if not question.grid:
        return
    rows, cols = question.grid
    others = study.other_keys(question.grid, question.tuned)

    def mean_entry(cell: Cell) -> Entry:
        outcome = outcomes[cell.label]
        return Entry(marked(format_mean(outcome.mean, outcome.half_width), cell, marks), none_if_nan(outcome.mean))

    caption = f"{question.selection.caption}: mean ± half the 95 % t-interval over seeds."
    title = f"Final performance by {rows} and {cols}"
    yield pivot(study, rows, cols, others, mean_entry, "final_grid", title, caption)
    for target, of_cells in durations.items():

        def rounds_entry(cell: Cell, of_cells: Mapping[str, Mapping[str, Duration]] = of_cells) -> Entry:
            rounds = of_cells[cell.label]["rounds"]
            return Entry(
                marked(format_duration(rounds, AXES["rounds"].format), cell, marks), none_if_nan(rounds.median)
            )

        text = format_value(target)
        caption = f"Rounds until {question.metric} first reaches {text}, median over seeds (range)."
        yield pivot(study, rows, cols, others, rounds_entry, f"target_{text}_grid", f"Rounds to {text}", caption)


def pivot(
    study: Study,
    rows: str,
    cols: str,
    others: Sequence[str],
    entry: Callable[[Cell], Entry],
    table_id: str,
    title: str,
    caption: str,
) -> Table:
    """Return a table with the values of one key down and those of another across; other keys have a column each."""
    heads = dict.fromkeys(format_value(cell.keys[cols]) for cell in study.cells if cols in cell.keys)
    lines: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in study.cells:
        if rows in cell.keys and cols in cell.keys:
            line = tuple(format_value(cell.keys[key]) if key in cell.keys else "" for key in (*others, rows))
            lines.setdefault(line, {})[format_value(cell.keys[cols])] = cell
    names = [*map(study.short_name, others), study.short_name(rows)]
    body: list[Sequence[Entry]] = []
    records = []
    for line, cells in lines.items():
        entries = [entry(cells[head]) if head in cells else Entry("") for head in heads]
        body.append([*(Entry(text, text) for text in line), *entries])
        record: dict[str, Any] = dict(zip((*others, rows), line, strict=True))
        record |= {f"{cols}={head}": each.sort for head, each in zip(heads, entries, strict=True)}
        records.append(record)
    columns = [*names, *(f"{study.short_name(cols)}={head}" for head in heads)]
    return Table(table_id, title, caption, columns, body, records)
