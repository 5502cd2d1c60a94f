"""The report as files and as a command: contents, LaTeX that compiles, and messages for mistakes."""

import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fedresearch.main import main
from fedresearch.study.report import command, files
from fedresearch.study.report import document as document_module
from fedresearch.study.report.document import _small, document
from fedresearch.study.report.load import load
from fedresearch.study.report.tables import (
    latex,
    markdown,
)
from tests.records import make, messy, report, rows


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


@pytest.mark.parametrize(("terminal", "mark"), [("xterm", "\x1b[1m"), ("dumb", "**")])
def test_a_terminal_that_knows_no_escapes_gets_none(two_cells, monkeypatch, capsys, terminal, mark):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(monkeypatch, capsys, two_cells)
    assert (code, mark in out, "\x1b" in out) == (0, True, terminal != "dumb")


def die(*figure):
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    write_figure(*figure)


def fail(name, *others):
    if name == "curves_bytes":
        raise ValueError("cannot draw")
    write_figure(name, *others)


write_figure = files._write_figure


def test_figures_of_several_processes_are_those_of_one_also_where_one_dies(two_cells, monkeypatch, capsys):
    found = {}
    for name, cores, write in (("one", 1, write_figure), ("two", 2, write_figure), ("dying", 99, die)):
        monkeypatch.setattr(files, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(files, "_write_figure", write)
        assert run(monkeypatch, capsys, two_cells, "--out", two_cells.parent / name)[0] == 0
        paths = [path for path in (two_cells.parent / name).iterdir() if path.name not in ("report.html", "report.md")]
        found[name] = {path.name: path.read_bytes() for path in paths}
    assert len([name for name in found["one"] if name.endswith(".pdf")]) == 2
    assert found["one"] == found["two"] == found["dying"]


def test_a_figure_that_cannot_be_drawn_in_another_process_is_an_error(two_cells, monkeypatch, capsys):
    monkeypatch.setattr(files, "num_cores", lambda: 2)
    monkeypatch.setattr(files, "_write_figure", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        run(monkeypatch, capsys, two_cells, "--out", two_cells.parent / "out")
    assert "Traceback" not in capsys.readouterr().err


# Draws nothing: each process waits in its first figure.
WAITING = """
import os, time
from fedresearch import main
from fedresearch.study.report import files

def wait(name, picture, out):
    (out / f"{name}.begun").touch()
    deadline, parent = time.monotonic() + 30, os.getppid()
    while time.monotonic() < deadline and os.getppid() == parent:
        time.sleep(0.01)

files._write_figure = wait
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
    def lose(*figure):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None

    monkeypatch.setattr(files, "num_cores", lambda: 1)
    monkeypatch.setattr(files, "_write_figure", lose)
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
