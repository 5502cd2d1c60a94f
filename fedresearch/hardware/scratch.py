"""A temporary folder that only this user can read, and that is removed however this process ends."""

import os
import shutil
import subprocess
import tempfile
from multiprocessing import util
from pathlib import Path

# The longest path of a Unix socket on macOS, whose limit is below Linux's.
LONGEST_SOCKET = 103
# Reads the processes to kill until the pipe closes, which is when this process ends. A killed process may still write
# for a moment.
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

    A shell in its own session kills them and removes the folder if this process is killed.

    Parameters
    ----------
    prefix : str
        The beginning of the folder's name.
    parent : str, optional
        Folder in which to create it; None: that of temporary files.

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
        """Kill a process, or with a negative id a process group, when this process ends."""
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{process}\n".encode())
        self._watch.stdin.flush()

    def close(self) -> None:
        """Remove the folder; the processes have been stopped before."""
        self._watch.kill()
        self._watch.communicate()
        shutil.rmtree(self.path, ignore_errors=True)


def write_secret(path: Path, content: str) -> None:
    """Write a file that no other user can read at any moment."""
    path.touch(0o600, exist_ok=False)
    path.write_text(content, encoding="utf-8")


def fits_sockets(folder: str, length: int) -> bool:
    """Return whether a socket with a path of ``length`` bytes below a folder is within the limit of sockets."""
    return len(os.fsencode(folder)) + length <= LONGEST_SOCKET


def shorten_multiprocessing() -> None:
    """Put multiprocessing's sockets into /tmp if the path of temporary files is too long for them."""
    if not fits_sockets(tempfile.gettempdir(), len("/pymp-12345678/listener-12345678")):
        usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            util.get_temp_dir()  # created once for a process and its children
        finally:
            tempfile.tempdir = usual
