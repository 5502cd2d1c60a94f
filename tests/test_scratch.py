"""A run's private folder: who may enter it, and what is left of it."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedresearch.hardware.scratch import Scratch, write_secret
from tests.processes import living

ROOT = Path(__file__).parents[1]


def test_its_files_are_this_users_alone_and_are_removed(tmp_path):
    scratch = Scratch(parent=str(tmp_path))
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    write_secret(scratch.path / "key", "secret")
    assert stat.S_IMODE((scratch.path / "key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):  # nothing that somebody else has laid there is written into
        write_secret(scratch.path / "key", "another")
    scratch.close()
    assert not [*tmp_path.iterdir()]


def test_all_ends_with_the_process_that_is_killed(tmp_path):
    """A process, a group of two, and the folder; what the process did not name stays."""
    program = """if True:
        import subprocess, sys, time
        from fedresearch.hardware.scratch import Scratch
        scratch = Scratch(parent=sys.argv[1])
        (scratch.path / "a b").mkdir()
        alone = subprocess.Popen(["sleep", "600"])
        group = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], start_new_session=True, stdout=-1)
        other = subprocess.Popen(["sleep", "600"])
        scratch.kill_at_exit(alone.pid)
        scratch.kill_at_exit(-group.pid)
        print(alone.pid, group.pid, int(group.stdout.readline()), other.pid, flush=True)
        time.sleep(600)
    """
    command, environment = [sys.executable, "-c", program, str(tmp_path)], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        *started, other = map(int, process.stdout.readline().split())
        assert [*tmp_path.iterdir()]
        process.kill()
    deadline = time.monotonic() + 10
    while set(started) & living().keys() or [*tmp_path.iterdir()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert other in living()
    os.kill(other, 9)


@pytest.mark.parametrize("length", [1, 90])
def test_sockets_of_multiprocessing_have_short_paths(tmp_path, length):
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    program = """if True:
        from fedresearch.hardware.scratch import shorten_multiprocessing
        shorten_multiprocessing()
        from multiprocessing import connection
        print(connection.Listener(family="AF_UNIX").address)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    parent = "/tmp" if len(str(folder)) > 71 else str(folder)
    assert done.stdout.startswith(f"{parent}/pymp-"), done.stderr
