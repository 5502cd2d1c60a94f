"""A report: all of its tables, figures, warnings and notes, before it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedresearch.drawings.picture import Picture
from fedresearch.runs.columns import larger_is_better
from fedresearch.runs.labels import without_unit
from fedresearch.study.report.arms import Arrangement, arrange
from fedresearch.study.report.cautions import counted, find_cautions
from fedresearch.study.report.cells import Study
from fedresearch.study.report.figures import figures
from fedresearch.study.report.final import across_table, final_table
from fedresearch.study.report.grids import grid_tables
from fedresearch.study.report.outcomes import find_outcome, select_values
from fedresearch.study.report.published import published_table
from fedresearch.study.report.question import Question
from fedresearch.study.report.ranks import find_styles
from fedresearch.study.report.tables import Table
from fedresearch.study.report.targets import durations_to, target_table


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Parameters
    ----------
    title : str
        Its subject.
    warnings, notes : list of str
        What a reader must know before the numbers.
    tables : list of Table
        In their order.
    figures : dict
        Name of the file to the figure and its caption.
    study : Study
        The cells.
    question : Question
        What the report answers.
    arrangement : Arrangement
        The cells' arms, with their looks, and their panels.
    selected : mapping
        Directory of a run to its selected number; NaN where a run has none.
    """

    title: str
    warnings: Sequence[str]
    notes: Sequence[str]
    tables: Sequence[Table]
    figures: Mapping[str, Picture]
    study: Study
    question: Question
    arrangement: Arrangement
    selected: Mapping[Path, float]


def build_report(study: Study, question: Question, with_figures: bool = True) -> Report:
    """Answer a question about a study; the figures take nearly all of the time."""
    selected = select_values(study.runs, question.selection)
    outcomes = {cell.label: find_outcome(cell, selected) for cell in study.cells}
    durations = {target: durations_to(study, question.metric, target) for target in question.targets}
    cautions = find_cautions(study, question.baseline, question.metric)
    arrangement = arrange(
        study,
        {label: outcome.mean for label, outcome in outcomes.items()},
        larger_is_better=larger_is_better(question.metric, study.declared),
        tuned=question.tuned,
        facet=question.facet,
        arms=question.arms,
        highlight=question.highlight,
        baseline=[partner.label for partner in question.baseline.partners.values()],
        names=question.names,
    )
    panels = [
        [label for label, place in arrangement.places.items() if place[0] == number]
        for number, _ in enumerate(arrangement.panels)
    ]
    styles = find_styles(panels, outcomes, larger_is_better=larger_is_better(question.metric, study.declared))
    tables = [
        published_table(study, cautions.marks),
        final_table(study, question, outcomes, cautions.marks, arrangement, styles),
        across_table(study, question, outcomes),
        *(
            target_table(study, question, target, durations[target], cautions.marks, arrangement)
            for target in question.targets
        ),
        *grid_tables(study, question, outcomes, durations, cautions.marks, arrangement, styles),
    ]
    name = without_unit(study.column_label(question.metric, question.names))
    num_runs = sum(len(cell.runs) for cell in study.cells)
    return Report(
        title=f"{name} of {counted(num_runs, 'run')} in {counted(len(study.cells), 'cell')}",
        warnings=cautions.warnings,
        notes=cautions.notes,
        tables=[replace(table, notes=[*table.notes, *cautions.legend]) for table in tables if table],
        figures=dict(figures(study, question, outcomes, arrangement)) if with_figures else {},
        study=study,
        question=question,
        arrangement=arrangement,
        selected=selected,
    )
