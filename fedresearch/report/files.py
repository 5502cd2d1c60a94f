"""A report's files, each written whole or not at all."""

from pathlib import Path

from fedresearch.report import figures
from fedresearch.report.document import document
from fedresearch.report.making import Report
from fedresearch.report.page import page
from fedresearch.report.tables import comma_separated, latex, markdown
from fedresearch.runs.directory import write_whole, writing


def write(made: Report, out: Path) -> str:
    """Write a report's page, Markdown, tables and figures to a folder, and return its tables to be read at once.

    Raises
    ------
    Unwritable
        If they cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for table in made.tables:
        _write(out / f"{table.id}.csv", comma_separated(table))
        _write(out / f"{table.id}.tex", latex(table))
    pictures = {name: figures.save(figure, out / name) for name, figure in made.figures.items()}
    told = "\n".join(markdown(table) for table in made.tables)
    first = [f"# {made.title}", *(f"**Warning:** {text}" for text in made.warnings), *made.notes]
    shown = [f"![{name}]({name}.png)" for name in pictures]
    _write(out / "report.md", "\n\n".join([*first, told, *shown]) + "\n")
    _write(out / "report.html", page(document(made, pictures)))
    return "\n\n".join([*(f"warning: {text}" for text in made.warnings), *made.notes, told])


def _write(path: Path, content: str | bytes) -> None:
    whole = content.encode() if isinstance(content, str) else content
    write_whole(path, lambda temporary: temporary.write_bytes(whole))
