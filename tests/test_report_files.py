"""The report as files and as a command: what is written, that LaTeX takes it, and what a mistake is told."""

import csv
import shutil
import subprocess
import sys

import pytest

from fedresearch.report import __main__ as command
from fedresearch.report.load import load
from fedresearch.report.making import report
from fedresearch.report.tables import Entry, Table, comma_separated, latex, markdown, measured, rounded
from tests.records import make

HOSTILE = [
    "50% & $x_1$ #~^\\{}",
    "± × † ‡ § – − ≥ ≤ …",
    "<a> | [1, *2] \"b\" 'c'",
    "[1, 2]",
    "*",
    "αμ-Größe",
    "-0.5",
    "1e-05",
]
TABLE = Table(
    "hostile_1",
    "Title",
    f"Caption {HOSTILE[0]}",
    ["name", f"head | {HOSTILE[0]}", "number"],
    [[Entry(text, text), Entry(text, text), Entry(f"{-0.1}", -0.1)] for text in HOSTILE],
    [{"name": text, "number": 0.1 + 0.2, "none": None} for text in HOSTILE],
    [f"† {text}" for text in HOSTILE],
)


def rows(*accuracies):
    return [
        {"eval/accuracy": accuracy, "clients/eval_acc": accuracy, "local/steps": 3, "time/total_s": number / 2}
        | {"comm/bytes_up_total": number * 1000, "comm/bytes_down_total": number * 1000}
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def messy(folder):
    """Write a sweep with arms that are well and runs that are not."""
    sections = {"federation": {"num_rounds": 8}}
    for alpha in (0.1, 1.0):
        more = {**sections, "partitioner": {"_target_": "dirichlet", "alpha": alpha}}
        for seed in (0, 1):
            for strategy, gain in (("fedavg", 0.0), ("scaffold", 0.1)):
                name, choices = f"{strategy}{alpha}{seed}", {"strategy": strategy}
                accuracies = (0.1, None, 0.5 + gain, 0.7 + alpha / 10 + seed / 100 + gain * (1 + seed))
                record = {"git": {"fedresearch": {"commit": strategy[0] * 40, "diff_sha256": None}}}
                make(folder / name, seed=seed, choices=choices, rows=rows(*accuracies), record=record, **more)
            choices = {"strategy": "fedprox"}
            states = {(0.1, 0): "finished", (0.1, 1): "diverged", (1.0, 0): "failed", (1.0, 1): "interrupted"}
            status = states[alpha, seed]
            of = rows(0.2, 0.3, 0.6) if status == "finished" else rows(0.2, 0.1) if status == "diverged" else []
            prox = {"server": {"_target_": "FedProx", "proximal_mu": HOSTILE[0] if alpha < 1 else 1}}
            directory, record = folder / f"fedprox{alpha}{seed}", {"error": "boom"}
            make(directory, seed=seed, choices=choices, status=status, rows=of, record=record, strategy=prox, **more)
    make(folder / "again", choices={"strategy": "scaffold"}, rows=[], status="running", **more)
    (folder / "refused").mkdir()
    (folder / "refused" / "refused.txt").write_text("model=x does not exist")


def run(monkeypatch, capsys, *arguments):
    """Run the command in this process; return its exit code, its output and its error lines."""
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    code = 0
    try:
        command.main()
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    return code, out, error.splitlines()


ARGUMENTS = ("--baseline", "strategy=fedavg", "--targets", "0.5,0.9")


def test_the_command_tells_and_writes_all_and_again_the_same(tmp_path, monkeypatch, capsys):
    messy(tmp_path / "runs")
    words = [sys.executable, "-m", "fedresearch.report", tmp_path / "runs", *ARGUMENTS]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "runs" / "report"
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    expected = {f"{name}.{form}" for name in ("final", "target_0.5", "target_0.9") for form in ("csv", "tex")}
    expected |= {f"curves_{axis}.{form}" for axis in ("rounds", "bytes") for form in ("png", "pdf")}
    assert expected | {"report.html", "report.md"} == written.keys()
    assert "## Final performance" in done.stdout
    assert "| fedavg " in done.stdout
    assert "1 refused" in done.stdout
    told = written["report.md"].decode()
    assert told.startswith("# eval/accuracy of 12 runs in 6 cells\n")
    assert "![curves_rounds](curves_rounds.png)" in told

    code, _, error = run(monkeypatch, capsys, tmp_path / "runs", *ARGUMENTS, "--out", tmp_path / "again" / "here")
    assert (code, error) == (0, [])
    for path in (tmp_path / "again" / "here").iterdir():
        assert path.name == "report.html" or path.read_bytes() == written[path.name], path.name


@pytest.fixture
def few(tmp_path):
    """Return a folder with two arms."""
    for strategy in ("fedavg", "scaffold"):
        make(tmp_path / "runs" / strategy, choices={"strategy": strategy}, rows=rows(0.1, 0.5))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metric", "eval/f1"], "no run has eval/f1; they have clients/eval_acc, comm/bytes_down_total, "),
        (["--targets", "0.4,95"], "no eval/accuracy can be 95.0, the largest is 1; try --targets 0.9"),
        (["--rows", "strategy", "--cols", "strategy"], "--rows and --cols are both strategy; name two keys"),
        (["--rows", "", "--cols", "strategy"], "--rows and --cols go together; "),
        (["--baseline", "=x"], "--baseline takes KEY=VALUE, got =x; try --baseline strategy=fedavg"),
        (["--targets", "0.5,x"], "--targets takes numbers, got x; try --targets 0.9,0.97"),
        (["--rows", "strategy"], "--rows and --cols go together; try --rows strategy --cols partitioner.alpha"),
        (["--rows", "strategy", "--cols", "seed"], "seed does not vary among these runs; what varies is strategy"),
        (
            ["--select", "nonsense"],
            "no selection rule nonsense; try --select last, best_val, mean_last:10 or best_test",
        ),
        (["--baseline", "strategy=x"], "no run has strategy=x; try --baseline strategy=fedavg or scaffold"),
        (
            ["--baseline", "strategy=fedavg", "--tuned", "lr"],
            "lr does not vary among these runs; what varies is strategy",
        ),
    ],
)
def test_what_cannot_be_asked_is_told(few, monkeypatch, capsys, arguments, told):
    code, out, (error,) = run(monkeypatch, capsys, few, *arguments)
    assert (code, out) == (1, "")
    assert error.startswith(f"error: {told}")
    assert not (few / "report").exists()


def test_folders_without_runs_are_told(tmp_path, monkeypatch, capsys):
    code, _, (error,) = run(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 1
    assert error.startswith(f"error: {tmp_path / 'nowhere'} is no directory; ")
    code, _, (error,) = run(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert error.startswith(f"error: no run in {tmp_path}; ")
    make(tmp_path / "run")
    code, _, (error,) = run(monkeypatch, capsys, tmp_path)
    assert (code, error) == (1, "error: no run has eval/accuracy; they have no round yet")


def test_a_place_that_cannot_be_written_is_told(few, monkeypatch, capsys):
    (few.parent / "file").write_text("mine")
    for place in ("file", "file/below"):
        code, _, (error,) = run(monkeypatch, capsys, few, "--out", few.parent / place)
        assert code == 1
        assert error.startswith("error: ")
        assert str(few.parent / "file") in error
    assert (few.parent / "file").read_text() == "mine"


def keyed(folder, values):
    for number, value in enumerate(values):
        make(folder / str(number), rows=rows(0.5, 0.6), model={"hidden": value})


def no_finished(folder):
    for status in ("failed", "diverged", "interrupted"):
        make(folder / status, status=status, rows=rows(0.5), choices={"strategy": status}, federation={"num_rounds": 9})


def some_without(folder):
    make(folder / "loss", choices={"strategy": "loss"}, rows=[{**row, "eval/accuracy": None} for row in rows(0.5, 0.6)])
    make(folder / "none", choices={"strategy": "none"}, rows=[])
    make(folder / "both", choices={"strategy": "both"}, rows=rows(0.5, 0.6))


@pytest.mark.parametrize(
    ("fill", "num_cells"),
    [
        (lambda folder: make(folder / "only", rows=rows(0.5)), 1),
        (no_finished, 3),
        (some_without, 3),
        (lambda folder: keyed(folder, [None, [1, 2], [{"a": [None]}], True, 1, "1e-3", "x" * 300, "a b " * 90]), 8),
        (lambda folder: keyed(folder, range(40)), 40),
    ],
    ids=["a single run", "no finished run", "metric in some", "any values", "many arms"],
)
def test_whatever_there_is_makes_a_report(tmp_path, fill, num_cells):
    fill(tmp_path)
    made = report(load([tmp_path]), targets=[0.55])
    final, target = made.tables
    assert len(final.rows) == len(target.rows) == num_cells
    for table in made.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert len(latex(table).splitlines()) > num_cells
        assert markdown(table).count("\n| ") == num_cells + 1


def test_keys_that_no_run_has_together_make_no_grid(tmp_path, monkeypatch, capsys):
    for name in ("mu", "momentum"):
        for value in (1, 2):
            server = {"server": {name: value}}
            make(tmp_path / f"{name}{value}", choices={"strategy": name}, strategy=server, rows=rows(0.5))
    arguments = ["--rows", "strategy.server.mu", "--cols", "strategy.server.momentum"]
    code, _, (error,) = run(monkeypatch, capsys, tmp_path, *arguments)
    assert (code, error) == (1, "error: no run has both strategy.server.mu and strategy.server.momentum")


def test_marks_are_in_every_table_of_cells(tmp_path):
    messy(tmp_path)
    made = report(load([tmp_path]), targets=[0.5], rows="strategy", cols="partitioner.alpha")
    for table in made.tables:
        assert any("†" in text for row in table.texts for text in row), table.id
        assert any(note.startswith("† ") for note in table.notes)


def test_markdown_is_a_table(tmp_path):
    title, _, caption, _, head, line, *body = markdown(TABLE).splitlines()
    assert (title, caption) == ("## Title", TABLE.caption)
    # Of a bar in a text, none is left.
    bars = [row.replace("\\|", "").count("|") for row in (head, line, *body[: len(HOSTILE)])]
    assert bars == [4] * (len(HOSTILE) + 2)
    assert [mark.strip("-") for mark in line.strip("|").split("|")] == [":", ":", ":"]
    assert line.endswith("-:|")


def test_csv_has_numbers_in_full():
    read = list(csv.DictReader(comma_separated(TABLE).splitlines()))
    assert [row["name"] for row in read] == HOSTILE
    assert {float(row["number"]) for row in read} == {0.1 + 0.2}
    assert {row["none"] for row in read} == {""}


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
        (0.0, 0.0, "0 ± 0"),
        (float("nan"), float("nan"), "–"),
    ],
)
def test_a_mean_is_told_to_the_digits_that_are_known(mean, half_width, text):
    assert measured(mean, half_width) == text


def test_p_values_have_two_digits():
    assert [rounded(p) for p in (float("nan"), 0.0, 0.00099, 0.0123, 1.0)] == ["–", "<0.001", "<0.001", "0.012", "1"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles_as_pasted(tmp_path):
    messy(tmp_path / "runs")
    made = report(
        load([tmp_path / "runs"]), against="strategy=fedavg", targets=[0.5], rows="strategy", cols="partitioner.alpha"
    )
    pasted = "\n".join(latex(table) for table in (TABLE, *made.tables))
    lines = [
        "\\documentclass{article}",
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
