"""The files of a report, each written whole or not at all."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedresearch.drawings.paper import saved
from fedresearch.drawings.picture import Picture
from fedresearch.hardware.cores import num_cores
from fedresearch.runs.directory import write_whole, writing
from fedresearch.study.report.build import Report
from fedresearch.study.report.document import document
from fedresearch.study.report.page import page
from fedresearch.study.report.redrawing import as_csv, script
from fedresearch.study.report.tables import comma_separated, hypertext, inert, latex, markdown

_NUMBER = 2  # bytes of a figure's number


def write(report: Report, out: Path) -> str:
    """Write a report's page, Markdown, tables and figures to a folder, and return the text to print.

    Files of an earlier report in the folder stay, and the text names them.

    Raises
    ------
    Unwritable
        If a file cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for table in report.tables:
        _write(out / f"{table.id}.csv", comma_separated(table))
        alone = replace(table, notes=[*table.notes, *(f"Warning: {text}" for text in report.warnings)])
        _write(out / f"{table.id}.tex", latex(alone))
        _write(out / f"{table.id}.html", hypertext(alone))
    _write_figures(report.figures, out)
    values = document(report, {name: (out / f"{name}.png").read_bytes() for name in report.figures})
    has_bold = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    tables, shown = (
        "\n".join(markdown(table, for_terminal=on_screen) for table in report.tables) for on_screen in (False, has_bold)
    )
    warnings, notes = ([*map(inert, texts)] for texts in (report.warnings, report.notes))
    opening = [f"# {inert(report.title)}", *(f"**Warning:** {text}" for text in warnings), *notes]
    images = [f"![{name}]({name}.png)\n\n{inert(picture.caption)}" for name, picture in report.figures.items()]
    closing = f"Generated {values['generated']} by `{inert(values['command'])}`"
    _write(out / "report.md", "\n\n".join([*opening, tables, *images, closing]) + "\n")
    _write(out / "report.html", page(values))
    leftovers = map(inert, _leftovers(report, out))
    return "\n\n".join([*(f"warning: {text}" for text in warnings), *notes, shown, *leftovers])


def _leftovers(report: Report, out: Path) -> Iterator[str]:
    """Yield a line that names the tables and figures in a folder that belong to an earlier report."""
    own = {f"{table.id}{suffix}" for table in report.tables for suffix in (".csv", ".tex", ".html")} | {"report.html"}
    own |= {f"{name}{suffix}" for name in report.figures for suffix in (".png", ".pdf", ".csv", ".py")}
    suffixes = (".csv", ".tex", ".html", ".png", ".pdf", ".py")
    others = {path.name for path in out.iterdir() if path.suffix in suffixes} - own
    if others:
        yield f"files of an earlier report, not of this one: {', '.join(sorted(others))}"


def _write_figures(pictures: Mapping[str, Picture], out: Path) -> None:
    """Write figures in as many processes as there are cores, each of which takes the next one when it has time.

    If another process fails, this one draws all figures again, which raises the error.
    """
    figures = [*pictures.items()]
    untaken, end = os.pipe()
    os.write(end, b"".join(number.to_bytes(_NUMBER) for number in range(len(figures))))
    os.close(end)
    context = multiprocessing.get_context("fork")
    # Daemons end when this process is interrupted.
    arguments = figures, untaken, out, os.getpid()
    forks = [
        context.Process(target=_write_in_a_fork, args=arguments, daemon=True)
        for _ in range(1, min(num_cores(), len(figures)))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads may hold locks, but none that drawing needs
        for fork in forks:
            fork.start()
    try:
        _write_untaken(figures, untaken, out)
    finally:
        os.close(untaken)
    for fork in forks:
        fork.join()
    if any(fork.exitcode for fork in forks):
        for name, picture in figures:
            _write_figure(name, picture, out)


def _write_in_a_fork(figures: Sequence[tuple[str, Picture]], untaken: int, out: Path, main: int) -> None:
    try:
        _write_untaken(figures, untaken, out, main)
    except (Exception, KeyboardInterrupt):  # the main process prints what happened
        sys.exit(1)


def _write_untaken(figures: Sequence[tuple[str, Picture]], untaken: int, out: Path, main: int | None = None) -> None:
    """Write figures of which the numbers are in a pipe, until it is empty or the main process has been killed."""
    while main in (None, os.getppid()) and (number := os.read(untaken, _NUMBER)):
        _write_figure(*figures[int.from_bytes(number)], out)


def _write_figure(name: str, picture: Picture, out: Path) -> None:
    """Write a figure, its data, and the script that redraws it."""
    figure = picture.figure
    for form in ("png", "pdf"):
        _write(out / f"{name}.{form}", saved(figure, form, picture.spec))
    _write(out / f"{name}.csv", as_csv(picture.data))
    _write(out / f"{name}.py", script(name, picture.drawing, picture.spec))


def _write(path: Path, content: str | bytes) -> None:
    whole = content.encode(errors="replace") if isinstance(content, str) else content
    write_whole(path, lambda temporary: temporary.write_bytes(whole))
