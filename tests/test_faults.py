"""Faults of a checkpoint, at each call that writes it and on the disk: the run resumes to the same bits."""

import errno
import json
import os
import pathlib

import pytest

from fedresearch.errors import InputError
from fedresearch.experiment.checkpoints import Checkpoints
from fedresearch.runs import checkpoint as module
from fedresearch.runs.checkpoint import read_checkpoints, write_checkpoint
from fedresearch.runs.directory import History, RunDirectory
from fedresearch.runs.record import read_record, read_rows
from tests.directories import SCAFFOLD, conduct, killed, outcome, resolved, rounds_of_checkpoints

pytestmark = pytest.mark.slow


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("how", "keep"), [("cut", 1), ("flipped", 2), ("empty", 2)])
def test_a_damaged_checkpoint_is_not_used(tmp_path, whole, caplog, how, keep):
    one, both = (killed(whole, tmp_path / name, checkpoint=3) for name in ("one", "both"))
    for run, damaged, after in ((one, [3], 2), (both, [1, 2, 3], 0)):
        for server_round in damaged:
            damage(run / "checkpoints" / f"round_{server_round:06d}.safetensors", how)
        conduct(run, *SCAFFOLD, f"checkpoint.keep={keep}")
        assert read_record(run)["resumed"][-1]["after_round"] == after
        assert outcome(run) == outcome(whole)
        assert rounds_of_checkpoints(run) == [3, 4][-keep:]
    assert "round_000003.safetensors is damaged and is not used" in caplog.text


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_new_one(tmp_path, whole, monkeypatch):
    run = killed(whole, tmp_path / "run", checkpoint=3)
    for path in (run / "checkpoints").iterdir():
        damage(path, "cut")
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        conduct(run, *SCAFFOLD, "checkpoint.keep=2")
    assert next(read_checkpoints(run))[0] == 1


class Stopped(BaseException):
    """Simulates the end of the process."""


def stop_after(monkeypatch, server_round):
    after = Checkpoints.after

    def stopping(self, row, arrays, is_best):
        after(self, row, arrays, is_best)
        if row["round"] == server_round:
            raise Stopped

    monkeypatch.setattr(Checkpoints, "after", stopping)


class Faults:
    """Lets one of the system calls that write a checkpoint end the process, or fail for want of room.

    From the fault on, none is done any more: not what a process that was killed would not have done either.
    """

    def __init__(self, patch, *, at=-1, when="before", full=False):
        self.calls, self.struck, self._at, self._when, self._full = [], False, at, when, full
        self.armed = False
        for owner, name in [
            ("os", "open"),
            ("os", "fsync"),
            ("os", "close"),
            ("pathlib.Path", "mkdir"),
            ("pathlib.Path", "chmod"),
            ("pathlib.Path", "replace"),
            ("pathlib.Path", "unlink"),
            ("fedresearch.runs.checkpoint", "save_file"),
        ]:
            real = getattr(pathlib.Path, name) if owner == "pathlib.Path" else None
            real = real or getattr(os if owner == "os" else module, name)
            patch.setattr(f"{owner}.{name}", self._faulty(name, real))

    def _faulty(self, name, real):
        def faulty(*args, **kwargs):
            if not self.armed:
                return real(*args, **kwargs)
            if self.struck and not self._full:
                raise Stopped
            number = len(self.calls)
            self.calls.append(name)
            if number != self._at:
                return real(*args, **kwargs)
            self.struck = True
            if self._when == "after":
                real(*args, **kwargs)
            elif self._when == "half" and name == "save_file":
                real(*args, **kwargs)
                os.truncate(args[1], args[1].stat().st_size // 2)
            if self._full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise Stopped

        return faulty


CALLS = [
    "mkdir",
    "save_file",
    "chmod",
    "open",
    "fsync",
    "close",
    "replace",
    "open",
    "fsync",
    "close",
    "unlink",
    "unlink",
]
REPLACE = CALLS.index("replace")


def write_again(run, keep, faults):
    """Write the checkpoint of round 3, of which the run has the row."""
    [(_, plain, arrays)] = [found for found in read_checkpoints(run) if found[0] == 3]
    (run / "checkpoints" / "round_000003.safetensors").unlink()
    before = {number: content for number, *content in read_checkpoints(run)}
    faults.armed = True
    try:
        write_checkpoint(run, 3, plain, arrays, keep)
    finally:
        faults.armed = False
    return before


def test_the_calls_that_write_a_checkpoint_are_known(tmp_path, whole, monkeypatch):
    run = killed(whole, tmp_path / "run", checkpoint=3)
    with monkeypatch.context() as patch:
        write_again(run, 2, faults := Faults(patch))
    assert faults.calls == CALLS
    assert rounds_of_checkpoints(run) == [2, 3]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_process_may_end_at_any_call_of_writing_a_checkpoint(tmp_path, whole, monkeypatch, keep):
    seen = set()
    points = [(at, when) for at in range(len(CALLS) + 2 - keep) for when in ("before", "half", "after")]
    for number, (at, when) in enumerate(points):
        run = killed(whole, tmp_path / str(number), checkpoint=3)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            write_again(run, keep, Faults(patch, at=at, when=when))
        newest, plain, arrays = next(read_checkpoints(run))
        [(_, *expected)] = [found for found in read_checkpoints(whole) if found[0] == newest]
        assert newest == (3 if at > REPLACE or (at, when) == (REPLACE, "after") else 2)
        assert resolved(plain, arrays) == resolved(*expected)
        left = tuple(sorted(path.name for path in (run / "checkpoints").iterdir()))
        if left not in seen:  # the checkpoints to resume from
            seen.add(left)
            conduct(run, *SCAFFOLD, f"checkpoint.keep={keep}")
            assert outcome(run) == outcome(whole)
            assert rounds_of_checkpoints(run) == [3, 4][-keep:]
    assert len(seen) >= 4


@pytest.mark.parametrize(("at", "name"), [(at, CALLS[at]) for at in (0, 1, 2, 4, 6, 8)])
def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(tmp_path, whole, monkeypatch, at, name):
    run, write = tmp_path / "run", module.write_checkpoint
    killed(whole, run, checkpoint=2)
    with monkeypatch.context() as patch:
        faults = Faults(patch, at=at, full=True)

        def armed(*args):
            faults.armed = not faults.struck
            try:
                write(*args)
            finally:
                faults.armed = False

        patch.setattr("fedresearch.experiment.checkpoints.write_checkpoint", armed)
        with pytest.raises(
            InputError, match="cannot be written: No space left on device; fix this and resume with resume="
        ):
            conduct(run, *SCAFFOLD)
    assert faults.calls[at] == name
    assert read_record(run)["status"] == "failed"
    assert not list(run.rglob("*.tmp"))
    assert next(read_checkpoints(run))[0] == (3 if at > 6 else 2)
    conduct(run, *SCAFFOLD)
    assert outcome(run) == outcome(whole)


def test_a_disk_without_room_for_a_row_or_the_record_is_reported(tmp_path, whole, monkeypatch, caplog):
    run = killed(whole, tmp_path / "run", checkpoint=2)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        append = RunDirectory._append

        def half(self, line):
            patch.setattr(pathlib.Path, "write_text", full)
            patch.setattr(self, "_metrics", Short(self._metrics))
            append(self, line)

        patch.setattr(RunDirectory, "_append", half)
        with pytest.raises(InputError, match=r"metrics.jsonl cannot be written: No space left .* resume with resume="):
            conduct(run, *SCAFFOLD)
    assert "run.json cannot be written: No space left on device" in caplog.text
    assert read_rows(run)[-1]["round"] == 2
    assert read_record(run)["status"] == "running"
    conduct(run, *SCAFFOLD)
    assert outcome(run) == outcome(whole)


class Short:
    """A file on a disk with room for half a line."""

    def __init__(self, file):
        self._file = file

    def write(self, line):
        return self._file.write(line[: len(line) // 2])

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_only_the_failures_of_rounds_that_run_again_are_forgotten(tmp_path):
    run = RunDirectory(tmp_path, {"started": "now"}, History())
    for server_round in (1, 2):
        run.log({"round": server_round})
        run.log_failure(server_round, 0, "train", "not today")
    after = run.history
    run.log({"round": 3})
    run.log_failure(3, 0, "train", "not today")
    run.close("interrupted", error=None, result={})
    RunDirectory(tmp_path, {"started": "now"}, after).close("failed", error=None, result={})
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [failure["round"] for failure in failures] == [1, 2]


def test_only_what_a_run_left_unfinished_is_removed(tmp_path):
    kept = [tmp_path / "run" / ".x.tmp", tmp_path / "run" / "notes" / ".draft.7.tmp"]
    left = [tmp_path / "run" / ".model.safetensors.12.tmp", tmp_path / "run" / "checkpoints" / ".round.12.tmp"]
    for path in (*kept, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    RunDirectory(tmp_path / "run", {"started": "now"}, History()).close("failed", error=None, result={})
    assert [path.exists() for path in (*kept, *left)] == [True, True, False, False]
