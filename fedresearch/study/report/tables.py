"""A table in the forms that it is needed in: Markdown, CSV of the numbers, LaTeX that compiles as pasted."""

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from tabulate import tabulate

_LETTERS = (*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA))  # Greek, without accents
# Those that look like Latin ones, and have no command.
_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))


def _greek(character: str) -> str:
    """Return a Greek letter as LaTeX."""
    if character in _LATIN:
        return _LATIN[character]
    word = unicodedata.name(character).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    return f"$\\{word.capitalize() if character.isupper() else word.lower()}$"


# What LaTeX writes otherwise, and what its source must not hold.
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": "$\\pm$", "×": "$\\times$", "–": "--", "−": "$-$", "≥": "$\\geq$", "≤": "$\\leq$", "∞": "$\\infty$"},
    **{"†": "$\\dagger$", "‡": "$\\ddagger$", "§": "\\S{}", "→": "$\\rightarrow$", "←": "$\\leftarrow$"},
    **{"…": "\\ldots{}", "|": "$|$", '"': "''"},
    **{character: f"{{{character}}}" for character in "[]*"},  # which mean something behind the end of a row
    **{character: _greek(character) for character in map(chr, _LETTERS)},
    **{character: f"U+{ord(character):04X}" for character in "ĦħĸĿŀŉŦŧſ"},  # which the font encoding T1 does not have
}


@dataclass(frozen=True)
class Entry:
    """What stands in a table: its text, and by what it is sorted; None comes last."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table as it is read, and the numbers behind it.

    Parameters
    ----------
    id : str
        The name of its files.
    title, caption : str
        In a few words, and how to read it.
    columns : list of str
        Their heads.
    rows : list of list of Entry
        An entry a column.
    records : list of dict
        The same and more as plain values, a record a row of the CSV; None for what is not known.
    notes : list of str
        What stands below.
    """

    id: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    records: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def texts(self) -> list[list[str]]:
        """The rows as they are read."""
        return [[entry.text for entry in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether its entries are sorted as numbers."""
        return [not any(isinstance(row[number].sort, str) for row in self.rows) for number in range(len(self.columns))]


def inert(text: str) -> str:
    """Return a text as one line of Markdown in which nothing is HTML, a link or a control of a terminal."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"<(?=[A-Za-z/!?])|\](?=[(\[:])", r"\\\g<0>", plain)


def markdown(table: Table) -> str:
    """Return a table as Markdown, with its title as a heading."""
    heads, *rows = ([inert(text).replace("|", "\\|") for text in row] for row in (table.columns, *table.texts))
    aligned = ["right" if numeric else "left" for numeric in table.numeric]
    body = tabulate(rows, heads, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    told = [inert(text) for text in (table.title, table.caption, *table.notes)]
    return "\n\n".join([f"## {told[0]}", told[1], body, *told[2:]]) + "\n"


def latex(table: Table) -> str:
    """Return a table as LaTeX's ``table``, to be pasted; a wide one is made as wide as the text."""
    frame = pd.DataFrame([[_escaped(text) for text in row] for row in table.texts])
    frame.columns = pd.Index([_escaped(column) for column in table.columns])
    body = frame.style.hide(axis="index").to_latex(
        hrules=True, column_format="".join("r" if numeric else "l" for numeric in table.numeric)
    )
    lines = [
        "% \\usepackage[T1]{fontenc} \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_escaped(table.caption)}}}",
        f"\\label{{tab:{table.id}}}",
        "\\smallskip",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"{body.rstrip()}}}",
        *(f"\n\\smallskip{{\\footnotesize {_escaped(note)}}}" for note in table.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """Return a table's records as CSV, numbers in full; a text that a spreadsheet would compute has ' before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (table.records[0], *(record.values() for record in table.records)):
        writer.writerow([_uncomputed(value) for value in row])
    return buffer.getvalue()


def _uncomputed(value: Any) -> Any:
    text = value if isinstance(value, str | int | float | None) else str(value)
    if not isinstance(text, str) or not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return text
    return text if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text) else f"'{text}"  # a number is none of its formulas


def _escaped(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    return "".join(map(_in_latex, re.sub(r"(?<![\w-])-(?=\d)", "−", composed)))


def _in_latex(character: str) -> str:
    """Return a character as pdflatex knows it; of one that it does not, the code point."""
    if character in _LATEX:
        return _LATEX[character]
    if unicodedata.category(character) == "Cf":  # invisible
        return ""
    if character.isspace():
        return " "
    is_known = ("!" <= character <= "ž" and character.isprintable()) or character in "‘’“”„€"
    return character if is_known else f"U+{ord(character):04X}"


def measured(mean: float, half_width: float) -> str:
    """Return a mean with its interval, both to the second digit of the interval; without one, to four digits."""
    if mean != mean:
        return "–"
    if half_width != half_width:
        return f"{mean:.4g}"
    if half_width <= 1e-12 * abs(mean):  # equal values, but for the rounding of their mean
        return f"{mean:.4g} ± 0"
    form = _form(mean, half_width)
    return f"{mean:{form}} ± {half_width:{form}}".replace("inf", "∞")


def between(value: float, low: float, high: float) -> str:
    """Return a value with the ends of its interval, all to the second digit of the interval's half width, if any."""
    form = _form(value, (high - low) / 2)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _form(value: float, half_width: float) -> str:
    """Return how numbers are told: to the half width's second digit; to four digits without spread, or from 1e15 on."""
    if 1e-12 * abs(value) < half_width and max(abs(value), half_width) < 1e15:
        return f".{max(0, 1 - int(f'{half_width:.1e}'.partition('e')[2]))}f"
    return ".4g"


def rounded(p_value: float) -> str:
    """Return a p-value to two digits."""
    if p_value != p_value:
        return "–"
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"


def number(value: float) -> float | None:
    """Return a number for a record or for sorting: None for NaN."""
    return None if value != value else float(value)
