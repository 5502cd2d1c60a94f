"""Every reader of a run directory with any damage gives a line or a result, in limited time and memory.

The suite reads a sample of them, ``./scripts/test --long`` all.
"""

import contextlib
import functools
import io
import json
import random
import resource
import shutil
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import HydraException

from fedresearch import config, hydra_app, load_model
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.resuming import is_unfinished
from fedresearch.runs import record as records
from fedresearch.runs.checkpoint import read_checkpoints
from fedresearch.runs.directory import History, RunDirectory
from fedresearch.runs.record import FINAL, locked, read_record
from fedresearch.study import reproduce, tune
from fedresearch.study.compare import compare
from fedresearch.study.report.files import write
from fedresearch.study.report.load import load
from fedresearch.study.sweep.status import show
from tests.conftest import LONG
from tests.damages import contents, damages, places_of, rewritten
from tests.directories import MLP, SHORT, conduct
from tests.records import report

WORDS = [*MLP, *SHORT, "strategy=fedrep", "federation.num_rounds=2", "checkpoint.best=personal/accuracy"]
RATES = (0.1, 0.2)
SECONDS = 300  # for any reader on a busy machine; waiting for a FIFO or reading a device would never end
BYTES = 4_000_000_000  # of memory, beyond that at the start of the test
BATCH = 24  # damaged runs in a report; the sample is one batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory of a run with seed 0, which tests must copy before writing."""
    return conduct(tmp_path_factory.mktemp("runs") / "0", *WORDS, "seed=0", f"optimizer.lr={RATES[0]}")


def another(whole, directory, seed, rate):
    """Copy a run as if it had another seed and learning rate, with a valid hash."""
    shutil.copytree(whole, directory)

    def change(fields):
        fields["overrides"] = [*WORDS, f"seed={seed}", f"optimizer.lr={rate}"]
        fields["config"]["seed"] = seed
        fields["config"]["optimizer"]["lr"] = rate

    rewritten(directory, change)
    return directory


class Slow(Exception):
    pass


@contextlib.contextmanager
def bounded():
    """Limit the time of each reader, and the memory of all."""

    def slow(*_):
        raise Slow

    handler = signal.signal(signal.SIGALRM, slow)
    statm = Path("/proc/self/statm")
    now = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def trouble(read):
    """Return what is wrong with the end of a reader; "" if it is a result or lines."""
    signal.alarm(SECONDS)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            read()
    except (InputError, HydraException) as error:
        with contextlib.redirect_stderr(out):
            if not config.report_error(error):
                return traceback.format_exc()[-900:]
    except BaseException:
        return traceback.format_exc()[-900:]
    finally:
        signal.alarm(0)
    text = out.getvalue()
    return f"controls are printed: {text!r}" if "\x1b" in text or "\a" in text else ""


def readers(whole, again):
    """Return the readers of one directory, by name."""
    return {
        "compare": lambda directory: print("\n".join(compare(whole, directory)[0])),
        "compared": lambda directory: print("\n".join(compare(directory, whole)[0])),
        "load_model": load_model,
        "the best model": lambda directory: load_model(directory, best=True),
        "a client's": lambda directory: load_model(directory, 1),
        "reproduce": lambda directory: reproduce.reproduce(directory, [], again),
    }


def folder_readers(folder):
    return {
        "report": lambda: print(write(report(load([folder]), targets=[0.5]), folder / "report")),
        "status": lambda: show(folder),
        "tune": lambda: print(
            tune.choose([run for run in load([folder]) if run.state in FINAL], "optimizer.lr", "last")
        ),
    }


def resume(directory, composed, choices):
    """Do all steps of a resume before it builds and trains, and claim its directory."""
    with contextlib.chdir(directory.parent):
        hydra_app._with_resumed_overrides([f"resume={directory}"])
    with locked(directory):
        if is_unfinished(read_record(directory), RunRequest(composed, choices, directory, [], [], [])):
            for _ in read_checkpoints(directory):
                pass
            RunDirectory(directory, {}, History())


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_damaged_directories_are_answered_in_lines(tmp_path, monkeypatch, whole):
    every = damages()
    assert len(every) > 560
    names = sorted(every)
    random.Random(0).shuffle(names)
    names = names if LONG else names[:BATCH]
    compose = functools.cache(config.compose)
    composed, choices, _ = compose(CONF, (*WORDS, "federation.num_rounds=3"))
    monkeypatch.setattr(config, "compose", lambda conf, words, dirs: compose(conf, tuple(words), tuple(dirs)))
    again = tmp_path / "again"
    monkeypatch.setattr(reproduce, "_run", lambda *_: shutil.copytree(whole, again))
    monkeypatch.chdir(tmp_path)
    found, read = [], 0

    def note(wrong, name, reader):
        nonlocal read
        read += 1
        if wrong:
            found.append(f"{name}, {reader}: {wrong}")
            print(found[-1], flush=True)

    with bounded():
        for first in range(0, len(names), BATCH):
            batch = names[first : first + BATCH]
            folder = tmp_path / str(first)
            shutil.copytree(whole, folder / "whole")
            for number, name in enumerate(batch, start=1):
                directory = another(whole, folder / f"{number}", number, RATES[number % 2])
                every[name](directory)
                for reader, read_one in readers(whole, again).items():
                    note(trouble(lambda: read_one(directory)), name, reader)  # noqa: B023
                    shutil.rmtree(again, ignore_errors=True)
            for reader, read_all in folder_readers(folder).items():
                note(trouble(read_all), batch, reader)
            for number, name in enumerate(batch, start=1):
                optimizer = {**composed.optimizer, "lr": RATES[number % 2]}
                longer = replace(composed, seed=number, optimizer=optimizer)
                note(trouble(lambda: resume(folder / f"{number}", longer, choices)), name, "resume")  # noqa: B023
            assert found or "0.1" in (folder / "report" / "report.md").read_text()
            shutil.rmtree(folder)
    print(f"{len(names)} directories, {read} readings, {len(found)} troubles")
    assert not found, "\n".join(found)


@pytest.mark.filterwarnings("ignore")
def test_damaged_lists_of_jobs_are_answered_in_lines(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "sweep" / "0")
    path, found = tmp_path / "sweep" / "sweep.json", []
    jobs = [
        {"overrides": [], "directory": value} for value in (None, 1, "../..", "/", "/dev/zero", "x" * 300, "\0", "loop")
    ]
    odd = {f"job {number}": json.dumps([job]).encode() for number, job in enumerate(jobs)}
    (path.parent / "loop").symlink_to("loop")
    writers = {how: lambda content=content: path.write_bytes(content) for how, content in (*contents(), *odd.items())}
    makers = {how: lambda make=make: make(path) for how, make in places_of("sweep.json")}
    with bounded():
        for how, make in {**writers, **makers}.items():
            make()
            for reader, read in (("load", lambda: load([path.parent])), ("status", lambda: show(path.parent))):
                if wrong := trouble(read):
                    found.append(f"{how}, {reader}: {wrong}")
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    assert not found, "\n".join(found)


def test_nothing_is_written_through_a_link_in_place_of_a_lock(tmp_path, whole):
    directory = shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    (directory / ".lock").unlink(missing_ok=True)
    (directory / ".lock").symlink_to(tmp_path / "mine")
    rewritten(directory, lambda fields: fields.update(status="running"))
    load([directory])
    assert (tmp_path / "mine").read_text() == "mine"


def test_all_readers_reject_edited_rows_except_compare_which_reports_them(tmp_path, whole, capsys):
    directory = shutil.copytree(whole, tmp_path / "run")
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text().replace('"round":2,', '"round":2,"eval/accuracy":0.99,'))
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged, or was edited"):
        records.read_run(directory)
    (run,) = load([directory])
    assert run.state == "damaged"
    with pytest.raises(InputError, match=r"^no run can be read: .*metrics.jsonl is damaged, or was edited"):
        report([run])
    with pytest.raises(InputError, match=r"was edited"):
        reproduce.reproduce(directory, [], tmp_path / "again")
    compare(whole, directory)
    assert "was edited" in capsys.readouterr().err
