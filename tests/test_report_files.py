"""The report as files and as a command: contents, LaTeX that compiles, and messages for mistakes."""

import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from fedresearch.main import main
from fedresearch.runs.pictures import class_counts
from fedresearch.study.report import command, files
from fedresearch.study.report import document as document_module
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.document import _small, document
from fedresearch.study.report.load import load
from fedresearch.study.report.plot_data import (
    client_spread,
    confusion,
    mean_curve,
    numeric_keys,
    plotted_runs,
)
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
from tests.records import make, report

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
        {"eval/accuracy": accuracy, "clients/accuracy": accuracy, "local/steps": 3, "time/total_s": number / 2}
        | {"comm/bytes_up_total": number * 1000, "comm/bytes_down_total": number * 1000}
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def messy(folder):
    """Write a sweep with finished cells and with runs that are not finished."""
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
            curves = {"finished": rows(0.2, 0.3, 0.6), "diverged": rows(0.2, 0.1)}
            prox = {"server": {"_target_": "FedProx", "proximal_mu": HOSTILE[0] if alpha < 1 else 1}}
            directory, record = folder / f"fedprox{alpha}{seed}", {"error": "boom"}
            make(
                directory,
                seed=seed,
                choices=choices,
                status=status,
                rows=curves.get(status, []),
                record=record,
                strategy=prox,
                **more,
            )
    make(folder / "again", choices={"strategy": "scaffold"}, rows=[], status="running", **more)
    (folder / "refused").mkdir()
    (folder / "refused" / "refused.txt").write_text("model=x does not exist")


def run(monkeypatch, capsys, *arguments):
    """Run the command in this process; return its exit code, its output and its error lines."""
    monkeypatch.setattr(sys, "argv", ["fedresearch", "report", *map(str, arguments)])
    code = 0
    try:
        command.main(sys.argv[2:])
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    return code, out, error.splitlines()


ARGUMENTS = ("--baseline", "strategy=fedavg", "--targets", "0.5,0.9")


@pytest.mark.slow
def test_the_command_prints_and_writes_everything_reproducibly(tmp_path, monkeypatch, capsys):
    messy(tmp_path / "runs")
    words = [sys.executable, "-m", "fedresearch.main", "report", tmp_path / "runs", *ARGUMENTS]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "runs" / "report"
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    names = [f"{name}{grid}" for name in ("final", "target_0.5", "target_0.9") for grid in ("", "_grid")]
    expected = {f"{name}.{form}" for name in names for form in ("csv", "html", "tex")}
    names = ("curves_rounds", "curves_bytes", "differences")
    expected |= {f"{name}.{form}" for name in names for form in ("png", "pdf", "csv", "py")}
    assert expected | {"report.html", "report.md"} == written.keys()
    assert "## Final performance" in done.stdout
    assert "| fedavg " in done.stdout
    assert "1 refused" in done.stdout
    text = written["report.md"].decode()
    assert text.startswith("# Test accuracy of 12 runs in 6 cells\n")
    assert "![curves_rounds](curves_rounds.png)\n\nTest accuracy by round: mean over" in text
    *same, last = text.splitlines()
    assert re.fullmatch(f"Generated [0-9-]{{10}} [0-9:]{{5}} UTC by `fedresearch report .*{' '.join(ARGUMENTS)}`", last)

    code, _, error = run(monkeypatch, capsys, tmp_path / "runs", *ARGUMENTS, "--out", tmp_path / "again" / "here")
    assert (code, error) == (0, [])
    for path in (tmp_path / "again" / "here").iterdir():
        if path.name == "report.md":
            assert path.read_text().splitlines()[:-1] == same
        else:
            assert path.name == "report.html" or path.read_bytes() == written[path.name], path.name


@pytest.fixture
def two_cells(tmp_path):
    """Return a folder with two cells."""
    for strategy in ("fedavg", "scaffold"):
        make(tmp_path / "runs" / strategy, choices={"strategy": strategy}, rows=rows(0.1, 0.5))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--metric", "eval/f1"],
            "no run has eval/f1; try --metric with one of clients/accuracy, comm/bytes_down_total, ",
        ),
        (
            ["--metric", "accurate"],
            "no run has accurate; try --metric with one of clients/accuracy, comm/",
        ),
        (["--metric", "eval/acuracy"], "no run has eval/acuracy; try --metric eval/accuracy"),
        (["--targets", "0.4,95"], "--targets 95.0 is above the largest eval/accuracy, 1; try --targets 0.9"),
        (["--rows", "strategy", "--cols", "strategy"], "--rows and --cols are both strategy; name two different keys"),
        (["--rows", "", "--cols", "strategy"], "--rows and --cols go together; "),
        (["--baseline", "=x"], "--baseline must be KEY=VALUE, got =x; try --baseline strategy=fedavg"),
        (["--baseline", "scaffold"], "--baseline must be KEY=VALUE, got scaffold; try --baseline strategy=scaffold"),
        (["--baseline", "strategy"], "--baseline must be KEY=VALUE, got strategy; try --baseline strategy=fedavg"),
        (["--targets", "0.5,x"], "--targets must be numbers, got x; try --targets 0.9,0.97"),
        (["--rows", "strategy"], "--rows and --cols go together; try --rows strategy --cols partitioner.alpha"),
        (["--rows", "strategy", "--cols", "seed"], "seed does not vary among these runs; varying keys: strategy"),
        (
            ["--select", "nonsense"],
            "unknown selection rule nonsense; try --select last, best_val, mean_last:10 or best_test",
        ),
        (["--baseline", "strategy=x"], "no run has strategy=x; try --baseline strategy=fedavg or scaffold"),
        (["--tuned", "lr"], "no run has the key lr; try --tuned optimizer.lr"),
        (["--tuned", "nothing"], "no run has the key nothing; leave it out of --tuned"),
        (["--label", "foo=bar"], "no run has the key or column foo; leave it out of --label"),
        (["--label", "lr=$\\eta$"], "no run has the key or column lr; try --label optimizer.lr=$\\eta$"),
        (["--label", "strategi=fedavg=Ours"], "no run has the key strategi; try --label strategy=fedavg=Ours"),
        (["--label", "strategy=fedav=Ours"], "no run has the value strategy=fedav; try --label strategy=fedavg=Ours"),
        (["--highlight", "SCAFOLD"], "--highlight SCAFOLD is part of no arm's label; the arms are "),
        (["--live", "--style", "icml"], "--style is of figures, which --live leaves out; "),
    ],
)
def test_impossible_questions_are_refused(two_cells, monkeypatch, capsys, arguments, message):
    code, out, (error,) = run(monkeypatch, capsys, two_cells, *arguments)
    assert (code, out) == (1, "")
    assert error.startswith(f"error: {message}")
    assert not (two_cells / "report").exists()


def test_a_label_of_bytes_that_are_not_utf8_is_drawn(two_cells, monkeypatch, capsys):
    label = os.fsdecode(b"Gr\xf6\xdfe")
    code, out, error = run(monkeypatch, capsys, two_cells, "--label", f"strategy=fedavg={label}")
    assert (code, error) == (0, [])
    assert "| Gr\\udcf6\\udcdfe " in out


def test_the_metric_of_several_columns_names_them(tmp_path, monkeypatch, capsys):
    make(tmp_path / "run", rows=[{**rows(0.5)[0], **{f"eval/per_class/{number}": 0.5 for number in range(11)}}])
    code, _, (error,) = run(monkeypatch, capsys, tmp_path, "--metric", "eval/per_class")
    listed = ", ".join(f"eval/per_class/{number}" for number in range(11))
    assert (code, error) == (
        1,
        f"error: eval/per_class has a column for each entry; try --metric with one of {listed}",
    )


def test_a_warning_is_printed_once_and_is_in_each_table_to_paste(two_cells, monkeypatch, capsys):
    for name, digest in (("a", "1"), ("b", "2")):
        make(two_cells / name, seed=9, choices={"strategy": name}, rows=rows(0.5), record={"data_sha256": digest})
    code, out, error = run(monkeypatch, capsys, two_cells, "--targets", "0.3")
    warning = "the samples differ between runs of the same seed and settings"
    assert (code, error) == (0, [])
    assert out.count(warning) == (two_cells / "report" / "report.md").read_text().count(warning) == 1
    for name in ("final", "target_0.3"):
        assert (two_cells / "report" / f"{name}.tex").read_text().count(warning) == 1


def test_folders_without_runs_are_refused(tmp_path, monkeypatch, capsys):
    code, _, (error,) = run(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 1
    assert error.startswith(f"error: {tmp_path / 'nowhere'} does not exist; ")
    code, _, (error,) = run(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert error.startswith(f"error: no run in {tmp_path}; ")
    make(tmp_path / "run")
    code, _, (error,) = run(monkeypatch, capsys, tmp_path)
    assert (code, error) == (1, "error: no run has a round yet")


def test_a_folder_that_cannot_be_written_is_an_error(two_cells, monkeypatch, capsys):
    (two_cells.parent / "file").write_text("mine")
    for place in ("file", "file/below"):
        code, _, (error,) = run(monkeypatch, capsys, two_cells, "--out", two_cells.parent / place)
        assert code == 1
        assert error.startswith("error: ")
        assert str(two_cells.parent / "file") in error
    assert (two_cells.parent / "file").read_text() == "mine"


def test_the_pages_pictures_keep_greys_without_a_hue_and_frequent_colours_exactly():
    generator = np.random.default_rng(0)
    dots = generator.integers(0, 256, (64, 64, 3), np.uint8)  # dots of which nearly each has a colour of its own
    dots[:32] = (207, 236, 228)
    dots[:8] = generator.integers(0, 256, (8, 64, 1), np.uint8)
    dots[:2] = 255
    buffer = io.BytesIO()
    Image.fromarray(dots).save(buffer, "PNG")
    small = np.asarray(Image.open(io.BytesIO(_small(buffer.getvalue()))).convert("RGB"))
    assert (small[:2] == 255).all()
    assert (np.ptp(small[:8], axis=-1) == 0).all()
    assert np.abs(small[:8].astype(int) - dots[:8]).max() <= 19
    assert (small[8:32] == (207, 236, 228)).all()
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= 64


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


@pytest.mark.parametrize(("terminal", "mark"), [("xterm", "\x1b[1m"), ("dumb", "**")])
def test_a_terminal_that_knows_no_escapes_gets_none(two_cells, monkeypatch, capsys, terminal, mark):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(monkeypatch, capsys, two_cells)
    assert (code, mark in out, "\x1b" in out) == (0, True, terminal != "dumb")


def die(share, out):
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return write_share(share, out)


def fail(share, out):
    if "curves_bytes" in dict(share):
        raise ValueError("cannot draw")
    return write_share(share, out)


write_share = files._write_share


def test_figures_of_several_processes_are_those_of_one_also_where_one_dies(two_cells, monkeypatch, capsys):
    found = {}
    for name, cores, share in (("one", 1, write_share), ("two", 2, write_share), ("nine", 99, die)):
        monkeypatch.setattr(files, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(files, "_write_share", share)
        assert run(monkeypatch, capsys, two_cells, "--out", two_cells.parent / name)[0] == 0
        paths = [path for path in (two_cells.parent / name).iterdir() if path.name not in ("report.html", "report.md")]
        found[name] = {path.name: path.read_bytes() for path in paths}
    assert len([name for name in found["one"] if name.endswith(".pdf")]) == 2
    assert found["one"] == found["two"] == found["nine"]


def test_a_figure_that_cannot_be_drawn_in_another_process_is_an_error(two_cells, monkeypatch, capsys):
    monkeypatch.setattr(files, "num_cores", lambda: 2)
    monkeypatch.setattr(files, "_write_share", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        run(monkeypatch, capsys, two_cells, "--out", two_cells.parent / "out")
    assert "Traceback" not in capsys.readouterr().err


# Draws nothing: each process waits in its first figure.
WAITING = """
import os, time
from fedresearch import main
from fedresearch.study.report import files

def wait(share, out):
    for name, _ in share:
        (out / f"{name}.begun").touch()
        deadline, parent = time.monotonic() + 30, os.getppid()
        while time.monotonic() < deadline and os.getppid() == parent:
            time.sleep(0.01)

files._write_share = wait
files.num_cores = lambda: 2
main.command()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code", "said"),
    [
        (os.kill, signal.SIGTERM, 143, "interrupted\n"),
        (os.killpg, signal.SIGTERM, 143, "interrupted\n"),
        (os.killpg, signal.SIGINT, 130, "interrupted\n"),
        (os.kill, signal.SIGKILL, -9, ""),
    ],
)
def test_a_signal_ends_all_processes_of_a_report_at_once(tmp_path, send, number, code, said):
    moved = {"update/norm": 1.0, "update/cosine": 1.0}
    make(tmp_path / "run", rows=[{**row, **moved} for row in rows(0.1, 0.5)])
    out = tmp_path / "out"
    words = [sys.executable, "-c", WAITING, "report", tmp_path / "run", "--out", out]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len([*out.glob("*.begun")]) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    send(process.pid, number)
    _, error = process.communicate(timeout=60)  # until no process has its end of the pipe
    assert time.monotonic() - began < 20
    assert (process.returncode, error) == (code, said)
    assert len([*out.glob("*.begun")]) == 2


def test_a_signal_of_which_a_library_makes_another_error_interrupts_a_report(two_cells, monkeypatch, capsys):
    def lose(share, out):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None

    monkeypatch.setattr(files, "num_cores", lambda: 1)
    monkeypatch.setattr(files, "_write_share", lose)
    monkeypatch.setattr(sys, "argv", ["fedresearch", "report", str(two_cells)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (143, "interrupted\n")


def test_files_of_an_earlier_report_stay_and_are_named(two_cells, monkeypatch, capsys):
    arguments = (two_cells, "--targets", "0.3", "--out", two_cells.parent / "out")
    _, out, _ = run(monkeypatch, capsys, *arguments)
    assert "of an earlier report" not in out
    for name in ("heat_map.png", "heat_map.pdf", "notes.txt"):
        (two_cells.parent / "out" / name).touch()
    before = {path.name for path in (two_cells.parent / "out").iterdir()}
    arguments = (two_cells, "--targets", "0.4", "--out", two_cells.parent / "out")
    _, out, _ = run(monkeypatch, capsys, *arguments)
    left = "heat_map.pdf, heat_map.png, target_0.3.csv, target_0.3.html, target_0.3.tex"
    assert f"files of an earlier report, not of this one: {left}" in out.splitlines()
    assert before < {path.name for path in (two_cells.parent / "out").iterdir()}


@pytest.mark.slow
def test_a_directory_whose_name_is_not_utf8_is_reported(two_cells):
    (two_cells / "scaffold").rename(two_cells / os.fsdecode(b"\xff"))
    words = [
        sys.executable,
        "-m",
        "fedresearch.main",
        "report",
        two_cells,
        "--out",
        two_cells.parent / os.fsdecode(b"out\xff"),
    ]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert "/?</button>" in (two_cells.parent / os.fsdecode(b"out\xff") / "report.html").read_text()


@pytest.mark.slow
def test_huge_numbers_are_reported(tmp_path):
    for seed, value in enumerate((1e200, -2e200, 3e200)):
        make(tmp_path / "runs" / f"{seed}", seed=seed, rows=[{**row, "eval/accuracy": value} for row in rows(0, 0)])
    words = [sys.executable, "-m", "fedresearch.main", "report", tmp_path / "runs"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6.667e+201 ± ∞" in done.stdout
    assert "$\\pm$ $\\infty$" in (tmp_path / "runs" / "report" / "final.tex").read_text()


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
    ids=["a single run", "no finished run", "metric in some", "any values", "many cells"],
)
def test_any_runs_make_a_report(tmp_path, fill, num_cells):
    fill(tmp_path)
    result = report(load([tmp_path]), targets=[0.55])
    final, target = result.tables
    assert len(final.rows) == len(target.rows) == num_cells
    for table in result.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert len(latex(table).splitlines()) > num_cells
        assert markdown(table).count("\n| ") == num_cells + 1


def test_keys_that_never_occur_together_make_no_grid(tmp_path, monkeypatch, capsys):
    for name in ("mu", "momentum"):
        for value in (1, 2):
            server = {"server": {name: value}}
            make(tmp_path / f"{name}{value}", choices={"strategy": name}, strategy=server, rows=rows(0.5))
    arguments = ["--rows", "strategy.server.mu", "--cols", "strategy.server.momentum"]
    code, _, (error,) = run(monkeypatch, capsys, tmp_path, *arguments)
    assert (code, error) == (1, "error: no run has both strategy.server.mu and strategy.server.momentum")


def test_marks_are_in_every_table_of_cells(tmp_path):
    messy(tmp_path)
    result = report(load([tmp_path]), targets=[0.5], grid=(["strategy"], ["partitioner.alpha"]))
    for table in result.tables:
        assert any("†" in text for row in table.texts for text in row), table.id
        assert any(note.startswith("† ") for note in table.notes)


def test_each_target_has_its_own_grid(tmp_path):
    for strategy in ("fedavg", "scaffold"):
        for alpha in (0.1, 1.0):
            partitioner = {"partitioner": {"_target_": "dirichlet", "alpha": alpha}}
            choices = {"strategy": strategy}
            make(tmp_path / f"{strategy}{alpha}", choices=choices, rows=rows(0.2, 0.4, 0.6, 0.8), **partitioner)
    result = report(load([tmp_path]), targets=[0.3, 0.7], grid=(["strategy"], ["partitioner.alpha"]))
    grids = {table.id: [entry.sort for row in table.rows for entry in row[1:]] for table in result.tables}
    assert grids["target_0.3_grid"] == pytest.approx([1.5] * 4)
    assert grids["target_0.7_grid"] == pytest.approx([3.5] * 4)


def partitioned(folder, name, alpha, seed, **more):
    partitioner = {"_target_": "dirichlet", "alpha": alpha, "seed": None}
    record = {"partition_sha256": f"{alpha} {more.get('strategy')}"}
    make(folder / name, seed=seed, rows=rows(0.5), record=record, partitioner=partitioner, **more)
    (folder / name / "partition.csv").write_text(PARTITION)


PARTITION = "client,train,val,test,class 0,class 1\n0,5,0,0,2,3\n1,4,0,0,4,0\n"


def test_a_partitions_title_has_the_settings_it_depends_on(tmp_path):
    for strategy in ("fedavg", "scaffold"):
        for alpha in (0.1, 1.0):
            partitioned(tmp_path, f"{strategy}{alpha}", alpha, 3, choices={"strategy": strategy})
    partitioned(tmp_path, "pooled", 0.1, 3, choices={"strategy": "central"}, strategy={"pooled": True})
    result = report(load([tmp_path]))
    titles = [picture.figure.get_suptitle() for name, picture in result.figures.items() if name.startswith("partition")]
    assert titles == ["α = 0.1, pooled, seed 3", "α = 0.1, seed 3", "α = 1, seed 3"]


def test_figures_have_captions(tmp_path):
    for seed in (0, 1):
        for alpha in (0.1, 1.0, 2.0):
            for lr in (0.1, 0.2):
                partitioned(tmp_path, f"{alpha}{lr}{seed}", alpha, seed, optimizer={"lr": lr})
    for path in tmp_path.glob("*/metrics.jsonl"):
        spread = dict.fromkeys((f"clients/accuracy_{part}" for part in ("mean", "std", "p10", "worst")), 0.5)
        path.write_text("".join(f"{json.dumps(json.loads(line) | spread)}\n" for line in path.read_text().splitlines()))
    captions = {name: picture.caption for name, picture in report(load([tmp_path])).figures.items()}
    of_curves = "mean over n = 2 seeds, with the 95 % t-interval as a band. Thin lines are seeds."
    last = "Test accuracy (%) after the last round, by"
    assert captions == {
        "curves_rounds": f"Test accuracy by round: {of_curves}",
        "curves_bytes": f"Test accuracy by bytes sent: {of_curves}",
        "sensitivity_alpha": f"{last} α: mean over seeds, with the 95 % t-interval as bars.",
        "heat_map": f"{last} learning rate η and α: mean over seeds ± half the 95 % t-interval; the colour is "
        "the mean.",
        "clients_accuracy": "Accuracy of the global model on clients after the last round that has it: mean, standard "
        "deviation, 10th percentile and worst over the clients, each a mean over seeds.",
        **{
            f"partition_{number}": f"Samples of each class on each client: α = {alpha:g}, seed 0. The largest bubble "
            "has 4. Class shares of a client against those of all, mean over clients: Jensen-Shannon distance 0.33 "
            "(0 to 1), earth mover's distance 0.60 (0 to 2, Zhao et al. 2018)."
            for number, alpha in enumerate((0.1, 1.0, 2.0), start=1)
        },
    }


@pytest.mark.parametrize(
    ("num_settings", "num_seeds", "names"),
    [(2, 3, set()), (3, 2, set()), (3, 3, {"profile"}), (5, 1, {"ranks"}), (6, 3, {"profile", "ranks"})],
)
def test_all_settings_are_in_one_figure_where_there_are_enough(tmp_path, num_settings, num_seeds, names):
    for number, (setting, gain, seed) in enumerate(product(range(num_settings), (0, 1, 2), range(num_seeds))):
        partitioner = {"_target_": "dirichlet", "alpha": 1.0 + setting}
        choices = {"strategy": ["fedavg", "fedprox", "scaffold"][gain]}
        last = 0.5 + setting / 100 + gain / 10 + seed / 1000
        make(tmp_path / f"{number}", seed=seed, choices=choices, rows=rows(0.1, last), partitioner=partitioner)
    found = report(load([tmp_path])).figures
    assert {"profile", "ranks"} & found.keys() == names
    if "ranks" in names:
        np.testing.assert_array_equal(found["ranks"].data["rank"], [3, 2, 1])
    if "profile" in names:
        assert found["profile"].data["y"][0] == 1
        assert found["profile"].data["y"][-1] == 0
    # A diverged run's cell has a mean over the others: its setting does not count.
    (path, *_) = tmp_path.glob("*/run.json")
    path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    again = report(load([tmp_path])).figures
    assert ("ranks" in again) == (num_settings > 5)


def test_confusions_of_seeds_are_added(tmp_path):
    for seed, counts in enumerate(("0,3,1\n1,0,0\n", "0,1,3\n1,0,0\n")):
        make(tmp_path / f"{seed}", seed=seed, rows=rows(0.5))
        (tmp_path / f"{seed}" / "confusion.csv").write_text(f"class,0,1\n{counts}")
    (cell,) = group_runs(load([tmp_path])).cells
    np.testing.assert_array_equal(confusion(cell), [[4, 4], [0, 0]])
    shares = report(load([tmp_path])).figures["confusion"].data["share"]
    np.testing.assert_array_equal(shares, [0.5, 0.5, np.nan, np.nan])


def test_confusions_of_another_number_of_classes_are_another_figure(tmp_path):
    for name, counts in {"two": "0,3,1\n1,0,0\n", "three": "0,3,1,0\n1,0,0,0\n2,0,0,5\n"}.items():
        make(tmp_path / name, dataset={"name": name}, rows=rows(0.5))
        (tmp_path / name / "confusion.csv").write_text(
            f"class,{','.join(map(str, range(counts.count(chr(10)))))}\n{counts}"
        )
    found = report(load([tmp_path])).figures
    assert {name: found[name].spec["panels"] for name in found if name.startswith("confusion")} == {
        "confusion_2": ["name = two"],
        "confusion_3": ["name = three"],
    }


def test_panels_of_all_arms_in_all_settings_are_a_grid_with_common_labels(tmp_path):
    for strategy, alpha in product(("fedavg", "scaffold"), (0.1, 1)):
        run = tmp_path / f"{strategy}_{alpha}"
        make(run, choices={"strategy": strategy}, partitioner={"_target_": "dirichlet", "alpha": alpha}, rows=rows(0.5))
        (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    picture = report(load([tmp_path])).figures["confusion"]
    assert picture.spec["grid"] == {"across": ["fedavg", "scaffold"], "down": ["α = 0.1", "α = 1"]}
    axes = picture.figure.axes
    assert [each.get_title() for each in axes] == ["fedavg", "scaffold", "", ""]
    assert [[text.get_text() for text in each.texts if "=" in text.get_text()] for each in axes] == [
        [],
        ["α = 0.1"],
        [],
        ["α = 1"],
    ]
    for alpha in (2, 4):  # more settings than arms: these stand below each other
        for strategy in ("fedavg", "scaffold"):
            run = tmp_path / f"{strategy}_{alpha}"
            partitioner = {"_target_": "dirichlet", "alpha": alpha}
            make(run, choices={"strategy": strategy}, partitioner=partitioner, rows=rows(0.5))
            (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    spec = report(load([tmp_path])).figures["confusion"].spec
    assert spec["grid"] == {"across": [f"α = {alpha}" for alpha in (0.1, 1, 2, 4)], "down": ["fedavg", "scaffold"]}
    assert spec["panels"][:5] == [*(f"fedavg, α = {alpha}" for alpha in (0.1, 1, 2, 4)), "scaffold, α = 0.1"]
    for path in tmp_path.glob("*_[24]"):
        shutil.rmtree(path)
    run = tmp_path / "scaffold_1"
    shutil.rmtree(run)
    picture = report(load([tmp_path])).figures["confusion"]
    assert picture.spec["grid"] is None
    assert picture.spec["panels"] == ["fedavg, α = 0.1", "scaffold, α = 0.1", "fedavg, α = 1"]


def test_panels_of_one_arm_in_many_settings_stand_side_by_side(tmp_path):
    for strategy, alpha in product(("fedavg", "scaffold"), range(1, 7)):
        run = tmp_path / f"{strategy}_{alpha}"
        make(run, choices={"strategy": strategy}, partitioner={"_target_": "dirichlet", "alpha": alpha}, rows=rows(0.5))
        (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    picture = report(load([tmp_path]), highlight=["fedavg"]).figures["confusion"]
    assert len(picture.spec["panels"]) == 6
    tops = {round(axes.get_window_extent().y1) for axes in picture.figure.axes}
    assert len(tops) == 2  # rows, of the three that fit in 6.3 inches


def test_each_class_has_its_accuracy_over_seeds(tmp_path):
    for seed, counts in enumerate(("0,3,1\n1,0,0\n", "0,1,3\n1,0,0\n")):
        make(tmp_path / f"{seed}", seed=seed, rows=rows(0.5))
        (tmp_path / f"{seed}" / "confusion.csv").write_text(f"class,0,1\n{counts}")
    data = report(load([tmp_path])).figures["class_accuracy"].data
    assert (data["row"], data["col"]) == (["fedavg"] * 2, ["0", "1"])
    np.testing.assert_array_equal(data["value"], [0.5, np.nan])  # of 3/4 and 1/4
    # Student's t with one degree of freedom is 12.706, and the standard error is 1/4.
    np.testing.assert_allclose(data["half_width"], [12.706 / 4, np.nan], rtol=1e-4)


def test_clients_have_trajectories_from_two_evaluations_on(tmp_path):
    make(tmp_path / "run", rows=rows(0.5, 0.6))
    lines = [
        {
            "round": number,
            "train": {"partition_id": [0]},
            "evaluate": {"partition_id": clients, "clients/accuracy": own},
        }
        for number, clients, own in ((1, [0, 1], [0.25, 0.75]), (2, [1], [0.5]))
    ]
    table = tmp_path / "run" / "clients.jsonl"
    table.write_text(f"{json.dumps(lines[0])}\n")
    assert "trajectories" not in report(load([tmp_path])).figures
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = report(load([tmp_path])).figures["trajectories"].data
    np.testing.assert_array_equal(data["client"], [np.nan, np.nan, 0, 0, 1, 1])
    np.testing.assert_array_equal(data["y"], [0.5, 0.5, 0.25, np.nan, 0.75, 0.5])
    np.testing.assert_allclose(data["low"][:2], [0.3, 0.5])


@pytest.mark.parametrize("text", ["", PARTITION.splitlines()[0], "x\n\n"])
def test_an_empty_partition_file_is_ignored(tmp_path, text):
    make(tmp_path / "run")
    (tmp_path / "run" / "partition.csv").write_text(text)
    with warnings.catch_warnings(action="error"):
        assert class_counts(tmp_path / "run") is None


def test_curves_use_finished_runs_and_spreads_the_last_evaluated_round(tmp_path):
    columns = [f"clients/accuracy_{part}" for part in ("mean", "std", "p10", "worst")]
    of_clients = [dict(zip(columns, values, strict=True)) for values in ([0.1] * 4, [0.5, 0.1, 0.3, 0.2], [None] * 4)]
    for seed, status in enumerate(("finished", "failed", "finished")):
        curve = [{**row, **more} for row, more in zip(rows(0.1, 0.2, 0.4 + seed / 10), of_clients, strict=True)]
        make(tmp_path / status / f"{seed}", seed=seed, status=status, rows=curve)
    (cell,) = group_runs(load([tmp_path])).cells
    assert [run.state for run in plotted_runs(cell)] == ["finished", "finished"]
    assert mean_curve(cell, "rounds", "eval/accuracy").mean[-1] == pytest.approx(0.5)
    spread = client_spread(cell, "clients/accuracy", "p10")
    assert (spread.mean, spread.std, spread.p10, spread.worst) == (0.5, 0.1, 0.3, 0.2)
    (cell,) = group_runs(load([tmp_path / "failed"])).cells
    assert not plotted_runs(cell)
    make(tmp_path / "failed" / "interrupted", seed=3, status="interrupted", rows=rows(0.1))
    (cell,) = group_runs(load([tmp_path / "failed"])).cells
    assert [run.state for run in plotted_runs(cell)] == ["interrupted"]
    make(tmp_path / "diverged", status="diverged", rows=rows(0.1), optimizer={"lr": 9})
    caption = report(load([tmp_path])).figures["curves_rounds"].caption
    assert caption.startswith("Test accuracy by round: mean over n = 2 seeds, with")
    caption = report(load([tmp_path / "failed", tmp_path / "diverged"])).figures["curves_rounds"].caption
    assert "by round: n = 1 seed (of runs under way where none is finished)." in caption
    assert caption.endswith(" No curve, as all runs failed, diverged or stalled: η = 9.")


@pytest.mark.parametrize(("first", "is_cut"), [(0.1, True), (0.5, False)])
def test_a_caption_says_where_the_axis_may_leave_out_the_start(tmp_path, first, is_cut):
    make(tmp_path / "run", rows=rows(first, *[0.5] * 39))  # 5 % are two rounds
    caption = report(load([tmp_path])).figures["curves_rounds"].caption
    assert caption.endswith(" The y axis may leave out the first 5 % of the way.") == is_cut


def test_a_heat_map_names_and_sorts_values_as_tables_do(tmp_path):
    labels = {"fedavg": "FedAvg", "scaffold": "SCAFFOLD"}
    for strategy, alpha in (("fedavg", 0.1), ("fedavg", 1), ("scaffold", 0.1), ("scaffold", 0.5), ("scaffold", 1)):
        partitioner = {"_target_": "dirichlet", "alpha": alpha}
        declared = {"server": {"_target_": strategy}, "declares": {"label": labels[strategy]}}
        run = tmp_path / f"{strategy}{alpha}"
        make(run, choices={"strategy": strategy}, rows=rows(0.5), partitioner=partitioner, strategy=declared)
    found = report(load([tmp_path]), labels=["strategy=fedavg=Plain"])
    data = found.figures["heat_map"].data
    assert [*dict.fromkeys(data["row"])] == ["Plain", "SCAFFOLD"] == [row[0].text for row in found.tables[1].rows]
    assert data["col"][:3] == ["0.1", "0.5", "1"]


def test_a_heat_map_has_a_strategy_with_several_numbers_once(tmp_path):
    for mu, seed in product((0.01, 0.1), (0, 1)):
        strategy = {"server": {"_target_": "FedProx", "mu": mu}, "declares": {"label": f"FedProx (μ = {mu})"}}
        make(tmp_path / f"{mu}{seed}", seed=seed, choices={"strategy": "fedprox"}, rows=rows(0.5), strategy=strategy)
    make(tmp_path / "avg", rows=rows(0.5), strategy={"server": {"_target_": "FedAvg", "mu": 0}})
    found = report(load([tmp_path]), grid=(["strategy"], ["mu"])).figures["heat_map"].data
    assert [*dict.fromkeys(found["row"])] == ["fedavg", "FedProx"]


@pytest.mark.parametrize(
    "arrangement",
    [{"facet": ["strategy"], "arms": ["partitioner.alpha"]}, {"arms": ["strategy", "partitioner.alpha"]}],
)
def test_differences_name_their_baseline_in_any_arrangement(tmp_path, arrangement):
    for strategy, alpha in product(("FedAvg", "SCAFFOLD"), (0.1, 1.0)):
        partitioner = {"_target_": "dirichlet", "alpha": alpha}
        declared = {"server": {"_target_": strategy}, "declares": {"label": strategy}}
        choices = {"strategy": strategy.lower()}
        run = tmp_path / f"{strategy}{alpha}"
        make(run, choices=choices, rows=rows(0.5), partitioner=partitioner, strategy=declared)
    found = report(load([tmp_path]), baseline="strategy=fedavg", **arrangement).figures["differences"]
    assert found.spec["x_label"] == "Test accuracy − FedAvg's (percentage points)"


def test_three_numbers_make_a_sensitivity(tmp_path):
    for number in range(3):
        make(tmp_path / f"{number}", optimizer={"lr": number}, model={"hidden": number % 2}, rows=rows(0.5))
    assert numeric_keys(group_runs(load([tmp_path])), 3) == ["optimizer.lr"]


def test_keys_that_distinguish_cells_come_first_in_a_runs_differences(tmp_path):
    for number, (strategy, lr) in enumerate((("fedavg", 0.1), ("fedavg", 0.2), ("scaffold", 0.1), ("scaffold", 0.2))):
        server = {"server": {"_target_": strategy}}
        record = {"git": {"fedresearch": {"commit": f"{number}"}}}
        make(
            tmp_path / f"{number}",
            choices={"strategy": strategy},
            rows=[{**row, "eval/accuracy": None if row["local/steps"] == number else 0.5} for row in rows(0.5)],
            record=record,
            strategy=server,
            optimizer={"lr": lr},
        )
    result = document(report(load([tmp_path]), targets=[0.5]), {})
    first = list(result["runs"][0]["changed"])
    assert first[:5] == ["strategy", "optimizer.lr", "experiment", "tracker.mode", "strategy.server._target_"]
    assert all(key.startswith("run: ") for key in first[5:])
    assert result["base"]["partitioner"] == "iid"
    assert "run: git.fedresearch.commit" in first
    assert result["targets"] == [{"metric": "eval/accuracy", "value": 0.5}]
    assert [cell["y"]["eval/accuracy"]["mean"] for cell in result["cells"]].count([None]) == 1


def test_the_page_has_each_partition_once_as_far_as_there_is_room(tmp_path, monkeypatch):
    for number, digest in enumerate("aabc"):
        run = tmp_path / f"{number}"
        make(run, seed=number, rows=rows(0.5), record={"partition_sha256": digest})
        lines = ["client,train,validation,samples,0,1", f"0,5,0,5,{ord(digest)},0", "1,3,0,3,0,3"]
        (run / "partition.csv").write_text("\n".join(lines[: None if digest != "c" else 1]))
    monkeypatch.setattr(document_module, "_MAX_COUNTS", 8)
    result = document(report(load([tmp_path])), {})
    assert result["partitions"] == [[[97, 0], [0, 3]], [[98, 0], [0, 3]]]
    assert [run["partition"] for run in result["runs"]] == [0, 0, 1, None]
    monkeypatch.setattr(document_module, "_MAX_COUNTS", 7)
    result = document(report(load([tmp_path])), {})
    assert [run["partition"] for run in result["runs"]] == [0, 0, None, None]


def test_the_only_arm_of_a_page_has_a_name(tmp_path):
    make(tmp_path / "run", rows=[{"eval/accuracy": 0.5}])
    result = document(report(load([tmp_path])), {})
    assert [result["arms"][0]["label"], result["cells"][0]["label"], result["runs"][0]["cell"]] == 3 * ["fedavg"]


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


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["| true", ">&-"])
def test_a_closed_output_and_an_ascii_terminal_are_fine(two_cells, closed):
    words = f"{sys.executable} -m fedresearch.main report {two_cells} --out {two_cells.parent / 'out'}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} {closed}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (two_cells.parent / "out" / "report.html").exists()


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
