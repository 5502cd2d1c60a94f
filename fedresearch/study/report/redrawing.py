"""A figure's data as CSV, and the script that redraws it."""

import ast
import csv
import inspect
import io
import re
from pprint import pformat
from types import ModuleType

from fedresearch.drawings import paper
from fedresearch.study.report.tables import FORMULA


def as_csv(data: paper.Data) -> str:
    """Return a figure's data with all digits; a text that a spreadsheet would compute gets a leading '."""
    columns = [
        [*map(_inert, column)] if name in paper.TEXTS else [*map(_number, column.tolist())]
        for name, column in data.items()
    ]
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(data)
    writer.writerows(zip(*columns, strict=True))
    return lines.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def _number(value: float) -> str:
    return "" if value != value else f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


def script(name: str, drawing: ModuleType, spec: paper.Spec) -> str:
    """Return the source of a script that draws ``NAME.csv`` as the report does."""
    return "\n".join(
        [
            f'"""Draws {name}.csv as {name}.png and {name}.pdf. Change SPEC, or what follows, and run it again."""',
            "",
            f"SPEC = {pformat(spec, width=110, sort_dicts=False)}",
            *(_body(module) for module in (paper, drawing)),
            'if __name__ == "__main__":',
            "    redraw(draw, SPEC, Path(__file__))",
            "",
        ]
    )


def _body(module: ModuleType) -> str:
    """Return a module's source without its imports of this project, and with its docstring as a comment."""
    source = inspect.getsource(module)
    lines, (docstring, *statements) = source.split("\n"), ast.parse(source).body
    left_out = [
        statement
        for statement in statements
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("fedresearch.")
    ]
    for statement in (docstring, *left_out):
        for number in range(statement.lineno - 1, statement.end_lineno or 0):
            lines[number] = ""
    comment = "\n".join(f"# {line}".rstrip() for line in str(module.__doc__).strip().split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", f"\n{comment}\n\n" + "\n".join(lines).strip() + "\n\n")
