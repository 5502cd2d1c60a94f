"""Runs as a report finds them: through links, while they run, unreadable, and with rows that are not numbers."""

import errno
import json
import os

import numpy as np
import pytest

from fedresearch.errors import InputError
from fedresearch.runs import record
from fedresearch.runs.record import dump_record
from fedresearch.study.report.arms import arrange
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.question import Question
from fedresearch.study.report.selection import parse_selection
from fedresearch.study.report.targets import durations_to, target_table
from fedresearch.study.sweep.status import list_jobs
from tests.records import make


def test_a_runs_rounds_are_counted_without_round_0_and_select_passes_it_over(tmp_path):
    rows = [{"round": n, "eval/accuracy": value} for n, value in enumerate([0.9, 0.2, 0.4])]
    make(tmp_path / "run", rows=rows)
    (run,) = load([tmp_path])
    assert run.num_rounds == 2
    assert len(run.column("eval/loss")) == 3
    chosen = {rule: parse_selection(rule, "eval/accuracy").choose(run) for rule in ("best_test", "mean_last:9")}
    assert chosen == {"best_test": 0.4, "mean_last:9": pytest.approx(0.3)}


def test_links_are_followed_and_do_not_loop(tmp_path, monkeypatch):
    make(tmp_path / "elsewhere" / "run")
    folder = tmp_path / "runs"
    make(folder / "own")
    (folder / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "up").symlink_to(folder)
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    assert sorted(run.directory.resolve().name for run in load([folder])) == ["own", "run"]
    assert len(scanned) == 6  # each folder and each link once


def test_a_run_with_several_paths_is_loaded_once(tmp_path):
    make(tmp_path / "sweep" / "done")
    jobs = [{"overrides": [], "directory": "done"}]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(jobs))
    (tmp_path / "link").symlink_to(tmp_path / "sweep" / "done")
    for paths in (["sweep", "link"], ["link", "sweep"], ["sweep/done", "link"]):
        assert len(load([tmp_path / path for path in paths])) == 1


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    make(tmp_path / "run")
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=f"^{closed} cannot be read: Permission denied$"):
        load([tmp_path])


def test_a_run_that_ends_while_it_is_read_is_running(tmp_path, monkeypatch):
    make(tmp_path / "run", status="running", rows=[{}])
    ended = record.read_record(tmp_path / "run") | {"status": "finished", "result": {"round": 2}}

    def ending(read):
        def reading(*arguments):
            found = read(*arguments)
            (tmp_path / "run" / "metrics.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
            (tmp_path / "run" / "run.json").write_text(dump_record(ended))
            return found

        return reading

    for name in ("read_rows_bytes", "read_record"):
        monkeypatch.setattr(record, name, ending(getattr(record, name)))
    (run,) = load([tmp_path])
    assert (run.state, run.error, run.num_rounds) == ("running", "", 2)
    (run,) = load([tmp_path])
    assert run.state == "finished"


def test_another_users_run_is_running(tmp_path, monkeypatch):
    make(tmp_path / "run", status="running")

    def refused(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(record, "file_lock", refused)
    (run,) = load([tmp_path])
    assert run.state == "running"


def test_a_refusal_need_not_be_utf8(tmp_path):
    make(tmp_path / "run")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "refused.txt").write_bytes(b"no file \xff.csv\n")
    assert {run.state: run.error for run in load([tmp_path])} == {"finished": "", "refused": "no file \ufffd.csv"}


@pytest.mark.parametrize(
    "content",
    [
        "5",
        "[5]",
        '[{"overrides": [], "directory": 5}]',
        '[{"overrides": [], "directory": null}]',
        '[{"overrides": 5, "directory": "a"}]',
        "[" * 100_000,
    ],
)
def test_a_damaged_list_of_jobs_is_an_error(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"sweep.json is damaged \(.*\); type the sweep's command again to rewrite it"):
        list_jobs(tmp_path)


def test_a_column_with_words_is_left_out(tmp_path):
    rows = [{"a": 1, "b": None, "c": 1, "d": "x", "e": None}, {"a": 0.5, "b": 2, "c": "x", "d": 1, "e": None}]
    make(tmp_path / "run", rows=[*rows, {"f": [1]}])
    (run,) = load([tmp_path])
    assert [*run.columns] == ["round", "a", "b"]
    np.testing.assert_array_equal(run.column("a"), [1, 0.5, np.nan])


def test_an_axis_that_a_run_does_not_record_is_unknown(tmp_path):
    make(tmp_path / "run", rows=[{"eval/accuracy": 0.5, "comm/bytes_up_total": 1}, {"eval/accuracy": 0.9}])
    make(tmp_path / "none", seed=1)
    runs = {run.directory.name: run for run in load([tmp_path])}
    for name in ("bytes", "steps", "seconds"):
        assert np.isnan(AXES[name].progress(runs["run"])).tolist() == [True, True]
    assert [len(AXES[name].progress(runs["none"])) for name in ("rounds", "bytes", "steps", "seconds")] == [0] * 4
    for target, rounds in ((0.9, "2"), (0.95, ">2, 0/1 seeds")):
        found = group_runs([*runs.values()])
        question = Question("eval/accuracy", parse_selection("last", "eval/accuracy"))
        table = target_table(
            found,
            question,
            target,
            durations_to(found, "eval/accuracy", target),
            {},
            arrange(found, {}, larger_is_better=True),
        )
        assert [row[-4:] for row in table.texts] == [[rounds, "–", "–", "–"]]
