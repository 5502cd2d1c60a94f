"""Directories of runs, damaged in every way, before every reader: a line or a result, in time, within memory.

The suite reads a sample of them. ``FEDRESEARCH_DAMAGES=1`` reads all, in half an hour.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import traceback
from pathlib import Path

import pytest

from fedresearch import config, load_model, reproduce, tune
from fedresearch.compare import compare
from fedresearch.errors import InputError
from fedresearch.report.files import write
from fedresearch.report.load import load
from fedresearch.report.making import report
from fedresearch.resuming import goes_on
from fedresearch.runs import record as records
from fedresearch.runs.record import read_record
from fedresearch.sweep.status import show
from fedresearch.usage import CONF
from tests.damages import damages, rewritten
from tests.directories import MLP, SHORT, conduct

ALL = "FEDRESEARCH_DAMAGES" in os.environ
SECONDS = 300  # of any reader, on a machine that is busy: what waits for a FIFO or reads a device never ends
BYTES = 4_000_000_000  # of memory, more than the test has when it begins
BATCH = 8  # damaged runs in a report


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with three runs of one sweep, the last two with seeds of their own."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        rate = 0.2 if seed == 2 else 0.1
        words = ["strategy=fedrep", "federation.num_rounds=2", f"seed={seed}", f"optimizer.lr={rate}"]
        conduct(folder / str(seed), *words)
    return folder


class Slow(Exception):
    pass


@contextlib.contextmanager
def bounded():
    """Bound the time of what is read, and the memory of it all."""

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
    """Return what is wrong with how a reader ends; "" where it is a result or lines."""
    signal.alarm(SECONDS)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            read()
    except InputError as told:
        return "" if told.args and all(isinstance(line, str) for line in told.args) else f"{told.args}"
    except BaseException:
        return traceback.format_exc()[-900:]
    finally:
        signal.alarm(0)
    text = out.getvalue()
    return f"controls are printed: {text!r}" if "\x1b" in text or "\a" in text else ""


def readers(whole, composed):
    """Return what reads one directory, by name."""
    return {
        "compare": lambda directory: print("\n".join(compare(whole, directory)[0])),
        "compared": lambda directory: print("\n".join(compare(directory, whole)[0])),
        "load_model": load_model,
        "a client's": lambda directory: load_model(directory, 1),
        "reproduce": lambda directory: reproduce.reproduce(directory, [], directory / "again"),
        "resume": lambda directory: goes_on(read_record(directory), composed, directory),
    }


def folder_readers(folder):
    return {
        "report": lambda: print(write(report(load([folder]), targets=[0.5]), folder / "report")),
        "status": lambda: show(folder),
        "tune": lambda: print(tune.choose(load([folder]), "optimizer.lr", "last")),
    }


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_damaged_directories_are_answered_in_lines(tmp_path, monkeypatch, runs):
    every = damages()
    assert len(every) > 560
    names = sorted(every)
    random.Random(0).shuffle(names)
    names = names if ALL else names[: 3 * BATCH]
    composed, *_ = config.compose(CONF, [*MLP, *SHORT, "strategy=fedrep", "seed=1", "federation.num_rounds=2"])

    def rerun(*_):
        raise InputError("it would train now")

    monkeypatch.setattr(reproduce, "_run", rerun)
    monkeypatch.chdir(tmp_path)
    found, read = [], 0
    with bounded():
        for first in range(0, len(names), BATCH):
            folder = tmp_path / str(first)
            shutil.copytree(runs / "0", folder / "whole")
            for number, name in enumerate(names[first : first + BATCH]):
                directory = shutil.copytree(runs / str(1 + number % 2), folder / f"{number}")
                every[name](directory)
                for reader, read_one in readers(runs / "0", composed).items():
                    read += 1
                    if wrong := trouble(lambda read_one=read_one, directory=directory: read_one(directory)):
                        found.append(f"{name}, {reader}: {wrong}")
            for reader, read_all in folder_readers(folder).items():
                read += len(names[first : first + BATCH])
                if wrong := trouble(read_all):
                    found.append(f"{names[first : first + BATCH]}, {reader}: {wrong}")
            assert "0.1" in (folder / "report" / "report.md").read_text() if not found else True
            shutil.rmtree(folder)
    print(f"{len(names)} directories, {read} readings, {len(found)} troubles")
    assert not found, "\n".join(found)


def test_nothing_is_written_through_a_link_in_the_place_of_a_lock(tmp_path, runs):
    directory = shutil.copytree(runs / "0", tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    (directory / ".lock").unlink(missing_ok=True)
    (directory / ".lock").symlink_to(tmp_path / "mine")
    rewritten(directory, lambda fields: fields.update(status="running"))
    load([directory])
    assert (tmp_path / "mine").read_text() == "mine"


def test_rows_that_were_edited_are_refused_by_all_but_compare_which_says_so(tmp_path, runs, capsys):
    directory = shutil.copytree(runs / "0", tmp_path / "run")
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text().replace('"round": 2, ', '"round": 2, "eval/accuracy": 0.99, '))
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged, or was edited"):
        records.read_run(directory)
    (run,) = load([directory])
    assert run.state == "damaged"
    with pytest.raises(InputError, match=r"was edited"):
        reproduce.reproduce(directory, [], tmp_path / "again")
    compare(runs / "0", directory)
    assert "was edited" in capsys.readouterr().err
