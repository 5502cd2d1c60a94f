"""A folder for one run that only this user can enter, and that is gone when this process is, however it ends."""

import os
import shutil
import subprocess
import tempfile
from multiprocessing import util
from pathlib import Path

# The shorter limit of the path of a Unix socket: macOS's.
LONGEST_SOCKET = 103
# Ends when the pipe does, which is when the process that holds it does, and has noted till then what to kill. What is
# killed may still write for a moment.
_WATCH = """\
trap '' HUP INT TERM
processes=
while read -r process; do processes="$processes $process"; done
test -z "$processes" || kill -s KILL -- $processes
for _ in 1 2 3 4 5; do
    rm -rf -- "$1" && exit
    sleep 1
done
"""


class Scratch:
    """A folder of mode 0700, and processes that must end with this one.

    A shell in a session of its own kills them and removes the folder, should this process be killed.

    Parameters
    ----------
    prefix : str
        What its name begins with.
    parent : str, optional
        Where to make it; None: where temporary files are.

    Attributes
    ----------
    path : Path
        The folder.
    """

    def __init__(self, prefix: str = "fedresearch-", parent: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self.path)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_at_exit(self, process: int) -> None:
        """Let a process, or with the sign changed a process group, end with this process."""
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{process}\n".encode())
        self._watch.stdin.flush()

    def close(self) -> None:
        """Remove the folder; whoever started the processes has ended them."""
        self._watch.kill()
        self._watch.communicate()
        shutil.rmtree(self.path, ignore_errors=True)


def write_secret(path: Path, content: str) -> None:
    """Write a file that at no moment anybody else can read."""
    path.touch(0o600, exist_ok=False)
    path.write_text(content, encoding="utf-8")


def fits_sockets(folder: str, length: int) -> bool:
    """Return whether a folder's path is short enough for a socket whose path in it has so many bytes."""
    return len(os.fsencode(folder)) + length <= LONGEST_SOCKET


def shorten_multiprocessing() -> None:
    """Let multiprocessing put its sockets into /tmp where the path of temporary files is too long for them."""
    if not fits_sockets(tempfile.gettempdir(), len("/pymp-12345678/listener-12345678")):
        usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            util.get_temp_dir()  # which is made once for a process, and inherited
        finally:
            tempfile.tempdir = usual
