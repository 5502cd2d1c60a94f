"""Tables, and their forms: Markdown, CSV with all digits, HTML for Word, and LaTeX that compiles as pasted."""

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any, Literal

from tabulate import tabulate

_LETTERS = (*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA))  # Greek, without accents
# Greek letters that look like Latin ones, and have no command.
_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))


def _greek(character: str) -> str:
    """Return a Greek letter as LaTeX."""
    if character in _LATIN:
        return _LATIN[character]
    word = unicodedata.name(character).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    return f"$\\{word.capitalize() if character.isupper() else word.lower()}$"


# Characters with a command in LaTeX, and characters that its source must not contain.
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": "$\\pm$", "×": "$\\times$", "–": "--", "−": "$-$", "≥": "$\\geq$", "≤": "$\\leq$", "∞": "$\\infty$"},
    **{"†": "$\\dagger$", "‡": "$\\ddagger$", "§": "\\S{}", "→": "$\\rightarrow$", "←": "$\\leftarrow$"},
    **{"…": "\\ldots{}", "|": "$|$", '"': "''"},
    **{character: f"{{{character}}}" for character in "[]*"},  # which have a meaning after the end of a row
    **{character: _greek(character) for character in map(chr, _LETTERS)},
    **{character: f"U+{ord(character):04X}" for character in "ĦħĸĿŀŉŦŧſ"},  # which the font encoding T1 does not have
}

# What a spreadsheet computes begins so.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Entry:
    """An entry of a table.

    Parameters
    ----------
    text : str
        What is read.
    sort : float or str, optional
        The value that sorts it; None comes last.
    style : str
        ``best`` is bold, and ``close`` is underlined.
    """

    text: str
    sort: float | str | None = None
    style: Literal["", "best", "close"] = ""


@dataclass(frozen=True)
class Table:
    """A table of texts, and the numbers behind it.

    Parameters
    ----------
    id : str
        The name of its files.
    title, caption : str
        Its subject, and how to read it.
    columns : list of str
        Heads of the columns.
    rows : list of list of Entry
        An entry for each column.
    records : list of dict
        The same and more as plain values, a record for each row of the CSV; None where unknown.
    notes : list of str
        Lines below the table.
    heads : list of list of str
        Each column's heads from the top, where neighbours share some, for LaTeX and HTML; empty: ``columns``.
    """

    id: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    records: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = field(default_factory=list)
    heads: Sequence[Sequence[str]] = ()

    @property
    def texts(self) -> list[list[str]]:
        """The rows as texts."""
        return [[entry.text for entry in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column's entries are sorted as numbers."""
        return [not any(isinstance(row[index].sort, str) for row in self.rows) for index in range(len(self.columns))]

    @property
    def head_rows(self) -> Iterator[list[tuple[str, int]]]:
        """The rows of heads from the top: texts, each with the number of columns that it stands over."""
        heads = self.heads or [(column,) for column in self.columns]
        depth = max(map(len, heads))
        heads = [("",) * (depth - len(head)) + (*head,) for head in heads]
        for level in range(1, depth):
            yield [(above[-1], len([*same])) for above, same in groupby(head[:level] for head in heads)]
        yield [(head[-1], 1) for head in heads]


def inert(text: str) -> str:
    """Return a text as one line of Markdown without HTML, links or control characters."""
    return re.sub(r"<(?=[A-Za-z/!?])|\](?=[(\[:])", r"\\\g<0>", _printable(text))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def markdown(table: Table, *, for_terminal: bool = False) -> str:
    """Return a table as Markdown, with its title as a heading; a terminal shows bold and underlined text as such."""
    marks = {"": ("", ""), "best": ("**", "**"), "close": ("<u>", "</u>")}
    if for_terminal:
        marks |= {"best": ("\x1b[1m", "\x1b[22m"), "close": ("\x1b[4m", "\x1b[24m")}
    heads = [_cell(column) for column in table.columns]
    rows = [[_cell(entry.text).join(marks[entry.style]) for entry in row] for row in table.rows]
    aligned = ["right" if numeric else "left" for numeric in table.numeric]
    body = tabulate(rows, heads, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    title, caption, *notes = map(inert, (table.title, table.caption, *table.notes))
    return "\n\n".join([f"## {title}", caption, body, *notes]) + "\n"


def _cell(text: str) -> str:
    return inert(text).replace("|", "\\|")


def latex(table: Table) -> str:
    """Return a table as a LaTeX ``table`` to paste; a wide one is scaled to the text's width."""
    *groups, heads = table.head_rows
    lines = [
        "% \\usepackage[T1]{fontenc} \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_escaped(table.caption)}}}",
        f"\\label{{tab:{table.id}}}",
        "\\smallskip",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{{''.join('r' if numeric else 'l' for numeric in table.numeric)}}}",
        "\\toprule",
        *map(_group_row, groups),
        f"{' & '.join(_escaped(text) for text, _ in heads)} \\\\",
        "\\midrule",
        *_body_rows(table),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\n\\smallskip{{\\footnotesize {_escaped(note)}}}" for note in table.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body_rows(table: Table) -> Iterator[str]:
    """Yield the rows; where some have the same first entry one after another, it stands once, and rules part them."""
    marks = {"": "{}", "best": "\\textbf{{{}}}", "close": "\\underline{{{}}}"}
    blocks = [[*rows] for _, rows in groupby(table.rows, lambda row: row[0].text)]
    for number, block in enumerate(blocks):
        if number and len(blocks) < len(table.rows):
            yield "\\midrule"
        for place, row in enumerate(block):
            first, *others = (marks[entry.style].format(_escaped(entry.text)) for entry in row)
            yield f"{' & '.join(['' if place else first, *others])} \\\\"


def _group_row(groups: Sequence[tuple[str, int]]) -> str:
    """Return heads over several columns, each with a rule below it."""
    heads, rules, first = [], "", 1
    for text, span in groups:
        heads.append(f"\\multicolumn{{{span}}}{{c}}{{{_escaped(text)}}}" if text else "& " * (span - 1))
        rules += f" \\cmidrule(lr){{{first}-{first + span - 1}}}" if text else ""
        first += span
    return f"{' & '.join(heads)} \\\\{rules}"


def hypertext(table: Table) -> str:
    """Return a table as an HTML file, to open in Word, or to copy from a browser."""
    tags = {"": "{}", "best": "<b>{}</b>", "close": "<u>{}</u>"}
    rule = "border-bottom: 0.75pt solid"
    *groups, heads = table.head_rows
    rows = [
        [f'<th colspan="{span}" style="{rule if text else ""}">{_in_html(text)}' for text, span in row]
        for row in groups
    ]
    rows.append([f'<th style="{rule}">{_in_html(text)}' for text, _ in heads])
    sides = ["right" if numeric else "left" for numeric in table.numeric]
    for row in table.rows:
        cells = zip(row, sides, strict=True)
        rows.append([f'<td align="{side}">{tags[entry.style].format(_in_html(entry.text))}' for entry, side in cells])
    lines = [
        f'<!doctype html><meta charset="utf-8"><title>{_in_html(table.title)}</title>',
        f"<p>{_in_html(table.caption)}</p>",
        '<table cellpadding="4" style="border-collapse: collapse; border: solid; border-width: 1.5pt 0">',
        *(f"<tr>{''.join(row)}</tr>" for row in rows),
        "</table>",
        *(f"<p>{_in_html(note)}</p>" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _in_html(text: str) -> str:
    return escape(_printable(text))


def comma_separated(table: Table) -> str:
    """Return a table's records as CSV with all digits; a text that a spreadsheet would compute gets a leading '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (table.records[0], *(record.values() for record in table.records)):
        writer.writerow([_inert_value(value) for value in row])
    return buffer.getvalue()


def _inert_value(value: Any) -> Any:
    text = value if isinstance(value, str | int | float | None) else str(value)
    if not isinstance(text, str) or not text.startswith(FORMULA):
        return text
    return text if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text) else f"'{text}"  # a number is safe


def _escaped(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    return "".join(map(_in_latex, re.sub(r"(?<![\w-])-(?=\d)", "−", composed)))


def _in_latex(character: str) -> str:
    """Return a character in LaTeX, or its code point where pdflatex does not know it."""
    if character in _LATEX:
        return _LATEX[character]
    if unicodedata.category(character) == "Cf":  # invisible
        return ""
    if character.isspace():
        return " "
    is_known = ("!" <= character <= "ž" and character.isprintable()) or character in "‘’“”„€"
    return character if is_known else f"U+{ord(character):04X}"


def format_mean(mean: float, half_width: float) -> str:
    """Return a mean and its half width to the second digit of that; without an interval, the mean to four digits."""
    if mean != mean:
        return "–"
    if half_width != half_width:
        return f"{mean:.4g}"
    if half_width <= 1e-12 * abs(mean):  # equal values; their mean is rounded
        return f"{mean:.4g} ± 0"
    spec = _number_format(mean, half_width)
    return f"{mean:{spec}} ± {half_width:{spec}}".replace("inf", "∞")


def format_interval(value: float, low: float, high: float) -> str:
    """Return a value and the ends of its interval, all to the second digit of the interval's half width."""
    spec = _number_format(value, (high - low) / 2)
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


def _number_format(value: float, half_width: float) -> str:
    """Return a format to the half width's second digit; to four digits without spread, or for numbers from 1e15."""
    if 1e-12 * abs(value) < half_width and max(abs(value), half_width) < 1e15:
        return f".{max(0, 1 - int(f'{half_width:.1e}'.partition('e')[2]))}f"
    return ".4g"


def format_p_value(p_value: float) -> str:
    """Return a p-value to two digits."""
    if p_value != p_value:
        return "–"
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"


def over_seeds(numbers: Collection[int]) -> str:
    """Return the least and the most of numbers of seeds in words, such as ``n = 3 to 5 seeds``."""
    least, most = min(numbers), max(numbers)
    return f"n = {least}{f' to {most}' if most > least else ''} seed{'s' * (most > 1)}"


def legend(rows: Sequence[Sequence[Entry]], signs: Mapping[str, str]) -> list[str]:
    """Return a line with what the signs mean with which any text of a table begins; none without any."""
    texts = [entry.text for row in rows for entry in row]
    found = [f"{sign} {meaning}" for sign, meaning in signs.items() if any(text.startswith(sign) for text in texts)]
    return [f"Signs: {'; '.join(found)}."] if found else []


def none_if_nan(value: float) -> float | None:
    """Return a number for a record or for sorting, with None for NaN."""
    return None if value != value else float(value)
