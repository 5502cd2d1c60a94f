"""A report's files, each written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

from fedresearch.runs.directory import write_whole, writing
from fedresearch.study.report import figures
from fedresearch.study.report.document import document
from fedresearch.study.report.making import Report
from fedresearch.study.report.page import page
from fedresearch.study.report.tables import comma_separated, inert, latex, markdown


def write(made: Report, out: Path) -> str:
    """Write a report's page, Markdown, tables and figures to a folder, and return its tables to be read at once.

    What an earlier report left in the folder stays, and is told.

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
    pictures = {name: figures.save(picture.figure, out / name) for name, picture in made.figures.items()}
    read = document(made, pictures)
    told = "\n".join(markdown(table) for table in made.tables)
    warnings, notes = ([*map(inert, texts)] for texts in (made.warnings, made.notes))
    first = [f"# {inert(made.title)}", *(f"**Warning:** {text}" for text in warnings), *notes]
    shown = [f"![{name}]({name}.png)\n\n{inert(picture.caption)}" for name, picture in made.figures.items()]
    last = f"Generated {read['generated']} by `{inert(read['command'])}`"
    _write(out / "report.md", "\n\n".join([*first, told, *shown, last]) + "\n")
    _write(out / "report.html", page(read))
    return "\n\n".join([*(f"warning: {text}" for text in warnings), *notes, told, *map(inert, _left(made, out))])


def _left(made: Report, out: Path) -> Iterator[str]:
    """Yield a line on the tables and figures in a folder that are not of this report."""
    own = {f"{table.id}{suffix}" for table in made.tables for suffix in (".csv", ".tex")}
    own |= {f"{name}{suffix}" for name in made.figures for suffix in (".png", ".pdf")}
    left = {path.name for path in out.iterdir() if path.suffix in (".csv", ".tex", ".png", ".pdf")} - own
    if left:
        yield f"of an earlier report, not of this one: {', '.join(sorted(left))}"


def _write(path: Path, content: str | bytes) -> None:
    whole = content.encode(errors="replace") if isinstance(content, str) else content
    write_whole(path, lambda temporary: temporary.write_bytes(whole))
