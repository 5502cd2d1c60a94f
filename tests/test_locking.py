"""Locks between processes, also on file systems without flock."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from filelock import FileLock

from fedresearch.data import cache
from fedresearch.locking import file_lock
from fedresearch.runs.record import LOCK, Busy, locked

WITHOUT_FLOCK = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]


@pytest.fixture(params=[None, *WITHOUT_FLOCK], ids=lambda number: errno.errorcode.get(number, "flock"))
def flock(request, monkeypatch):
    """A file system with flock, or without."""
    if request.param is not None:

        def refuse(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_a_directory_belongs_to_one_process(tmp_path, flock):
    with locked(tmp_path):
        with pytest.raises(Busy) as busy, locked(tmp_path):
            pass
        assert (str(tmp_path / LOCK) in str(busy.value)) == (flock is not None)
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


DIES = """
import fcntl, os, sys
from pathlib import Path
def refuse(*_):
    raise OSError(int(sys.argv[2]), "no flock")
if sys.argv[2] != "None":
    fcntl.flock = refuse
from fedresearch.locking import file_lock
lock = file_lock(Path(sys.argv[1]))
lock.acquire()
os._exit(7)
"""


def test_a_dead_process_holds_no_lock(tmp_path, flock):
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path / LOCK, str(flock)])
    assert died.returncode == 7
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_another_error_of_the_file_system_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        file_lock(tmp_path / LOCK)


def test_waiting_for_arrays_is_reported(tmp_path, monkeypatch, caplog, flock):
    monkeypatch.setattr(cache, "_WARN_AFTER_S", 0.1)
    making, made = threading.Event(), threading.Event()

    def make():
        making.set()
        assert made.wait(60)
        return {"x": np.arange(3)}

    def refuse():
        raise AssertionError("made twice")

    other = threading.Thread(target=cache.cached_arrays, args=(tmp_path, "name", "key", make))
    other.start()
    assert making.wait(60)
    timer = threading.Timer(0.5, made.set)
    timer.start()
    np.testing.assert_array_equal(cache.cached_arrays(tmp_path, "name", "key", refuse)["x"], [0, 1, 2])
    other.join()
    timer.join()
    (record,) = caplog.records
    assert "waiting for another process" in record.message
    assert ".npz.lock" in record.message
    assert isinstance(file_lock(tmp_path / "other"), FileLock) == (flock is None)
