"""A report's tables as Markdown, CSV, LaTeX and HTML, and the digits of their numbers."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from fedresearch.study.report.load import load
from fedresearch.study.report.tables import (
    Entry,
    Table,
    comma_separated,
    format_interval,
    format_mean,
    format_p_value,
    hypertext,
    latex,
    markdown,
)
from tests.records import HOSTILE, messy, report

TABLE = Table(
    "hostile_1",
    "Title",
    f"Caption {HOSTILE[0]}",
    ["name", f"head | {HOSTILE[0]}", "number"],
    [[Entry(text, text), Entry(text, text), Entry(f"{-0.1}", -0.1)] for text in HOSTILE],
    [{"name": text, "number": 0.1 + 0.2, "none": None} for text in HOSTILE],
    [f"† {text}" for text in HOSTILE],
)


def test_markdown_is_a_table(tmp_path):
    title, _, caption, _, head, line, *body = markdown(TABLE).splitlines()
    assert (title, caption) == ("## Title", TABLE.caption)
    # Bars in texts are escaped.
    bars = [row.replace("\\|", "").count("|") for row in (head, line, *body[: len(HOSTILE)])]
    assert bars == [4] * (len(HOSTILE) + 2)
    assert [mark.strip("-") for mark in line.strip("|").split("|")] == [":", ":", ":"]
    assert line.endswith("-:|")


def test_csv_has_numbers_in_full():
    read = list(csv.DictReader(comma_separated(TABLE).splitlines()))
    assert [row["name"] for row in read] == HOSTILE
    assert {float(row["number"]) for row in read} == {0.1 + 0.2}
    assert {row["none"] for row in read} == {""}


def test_latex_has_a_setting_once_and_rules_between_settings():
    def body(*firsts):
        rows = [[Entry(first, first), Entry(f"{place}", place)] for place, first in enumerate(firsts)]
        lines = latex(Table("id", "title", "caption", ["a", "b"], rows, [])).splitlines()
        return lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]

    assert body("x", "x", "y") == ["x & 0 \\\\", " & 1 \\\\", "\\midrule", "y & 2 \\\\"]
    assert body("x", "y") == ["x & 0 \\\\", "y & 1 \\\\"]


def test_texts_cannot_be_formulas_tags_or_links():
    texts = ["=1+1", "+cmd", "-x", "@a", "-0.5", "<script>", "[a](javascript:b)", "\x1b[31m", "a<b", "<0.001"]
    table = Table("t", "T", "c", ["a"], [[Entry(text)] for text in texts], [{"a": text} for text in texts])
    assert comma_separated(table).splitlines()[1:6] == ["'=1+1", "'+cmd", "'-x", "'@a", "-0.5"]
    lines = [line.strip("| ") for line in markdown(table).splitlines() if line.startswith("| ")][1:]
    assert lines[5:] == ["\\<script>", "[a\\](javascript:b)", "[31m", "a\\<b", "<0.001"]


GROUPED = Table(
    "grouped",
    "Title",
    "Caption",
    ["Strategy", "MNIST, IID", "MNIST, Dir(α = 1)", "Digits, IID"],
    [[Entry("A & B", "A"), Entry("1", 1, "best"), Entry("2", 2, "close"), Entry("3", 3)]],
    [{}],
    heads=[["Strategy"], ["MNIST", "IID"], ["MNIST", "Dir(α = 1)"], ["Digits", "IID"]],
)


def test_columns_have_common_heads_and_entries_are_bold_or_underlined():
    assert [*GROUPED.head_rows] == [
        [("", 1), ("MNIST", 2), ("Digits", 1)],
        [("Strategy", 1), ("IID", 1), ("Dir(α = 1)", 1), ("IID", 1)],
    ]
    assert [*TABLE.head_rows] == [[(column, 1) for column in TABLE.columns]]
    source = latex(GROUPED)
    assert (
        " & \\multicolumn{2}{c}{MNIST} & \\multicolumn{1}{c}{Digits} \\\\ \\cmidrule(lr){2-3} \\cmidrule(lr){4-4}\n"
        "Strategy & IID & Dir($\\alpha$ = 1) & IID \\\\\n\\midrule\n"
        "A \\& B & \\textbf{1} & \\underline{2} & 3 \\\\\n"
    ) in source
    assert [word.strip() for word in markdown(GROUPED).splitlines()[-1].split("|")[1:-1]] == [
        *("A & B", "**1**", "<u>2</u>", "3")
    ]
    page = hypertext(GROUPED)
    assert '<th colspan="2" style="border-bottom: 0.75pt solid">MNIST' in page
    assert '<td align="left">A &amp; B<td align="right"><b>1</b><td align="right"><u>2</u><td align="right">3' in page


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (0.91234, 0.0123, "0.912 ± 0.012"),
        (0.91234, 0.00996, "0.912 ± 0.010"),
        (12345.6, 150.2, "12346 ± 150"),
        (-0.05, 0.1, "-0.05 ± 0.10"),
        (0.91234, float("nan"), "0.9123"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.1, 1e-17, "0.1 ± 0"),
        (1e20, 1e20, "1e+20 ± 1e+20"),
        (9e14, 1e14, "900000000000000 ± 100000000000000"),
        (1e15, 5e14, "1e+15 ± 5e+14"),
        (1e200, float("inf"), "1e+200 ± ∞"),
        (0.0, 0.0, "0 ± 0"),
        (float("nan"), float("nan"), "–"),
    ],
)
def test_a_mean_has_the_digits_of_its_interval(mean, half_width, text):
    assert format_mean(mean, half_width) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.5, 0.41, 0.59, "0.500 [0.410, 0.590]"),
        (1e-06, 1e-06, 1e-06, "1e-06 [1e-06, 1e-06]"),
        (0.3, 0.3, 0.1 + 0.2, "0.3 [0.3, 0.3]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (1e20, 0.0, 2e20, "1e+20 [0, 2e+20]"),
    ],
)
def test_an_interval_has_two_significant_digits(value, low, high, text):
    assert format_interval(value, low, high) == text


def test_p_values_have_two_digits():
    assert [format_p_value(p) for p in (float("nan"), 0.0, 0.00099, 0.0123, 1.0)] == [
        "–",
        "<0.001",
        "<0.001",
        "0.012",
        "1",
    ]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("β1→Λ", "$\\beta$1$\\rightarrow$$\\Lambda$"),
        ("a\u200bb 中 🎉", "ab U+4E2D U+1F389"),
        ("ςΑ é e\u0301 Ł", "$\\sigma$A é é Ł"),
        ("∞ ← -1 \x1b", "$\\infty$ $\\leftarrow$ $-$1 U+001B"),
    ],
)
def test_latex_has_commands_or_code_points(text, source):
    assert f" & {source} & " in latex(Table(**{**vars(TABLE), "rows": [[Entry(text)] * 3]}))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles_as_pasted(tmp_path):
    messy(tmp_path / "runs")
    result = report(
        load([tmp_path / "runs"]), baseline="strategy=fedavg", targets=[0.5], grid=(["strategy"], ["partitioner.alpha"])
    )
    texts = [
        *map(chr, [*range(0x20), *range(0x7F, 0x180), *range(0x370, 0x400)]),
        "中文 🎉\ufe0f ∞ \udcff\u2028 ⟨ ‘’“”„€",
    ]
    odd = Table(**{**vars(TABLE), "id": "odd", "rows": [[Entry(text)] * 3 for text in texts], "notes": texts})
    pasted = "\n".join(latex(table) for table in (TABLE, GROUPED, odd, *result.tables))
    lines = [
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}",
        "\\usepackage{booktabs,graphicx}",
        "\\begin{document}",
        pasted,
        "\\end{document}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(lines))
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    for trouble in ("Missing character", "Overfull"):
        assert trouble not in (tmp_path / "paper.log").read_text(errors="replace")


def test_a_terminal_shows_bold_and_underlined_numbers_as_such():
    styles = ("best", "close", "")
    table = Table(
        "id", "title", "caption", ["a", "b"], [[Entry("x", "x"), Entry("0.5", 0.5, style)] for style in styles], [], []
    )
    shown = markdown(table, for_terminal=True)
    assert "\x1b[1m0.5\x1b[22m |" in shown
    assert "\x1b[4m0.5\x1b[24m |" in shown
    plain = re.sub(r"\x1b\[\d+m", "", shown)
    assert len({len(line) for line in plain.splitlines() if line.startswith("|")}) == 1
    assert plain == markdown(replace(table, rows=[[Entry("x", "x"), Entry("0.5", 0.5)]] * 3))
