"""A lock between processes, as a file, on file systems with and without ``flock``."""

import errno
import fcntl
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

# Errors of file systems without flock, such as some Lustre and NFS, and of those whose lock server does not answer.
_WITHOUT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def file_lock(path: Path, timeout_s: float = -1) -> BaseFileLock:
    """Return a lock between processes: the system's, if the file system of the folder has ``flock``.

    The system releases the lock of a dead process. Without ``flock``, the file itself is the lock and names the process
    and the machine that hold it. It is taken over if that process is dead; from another machine, remove it by hand.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    timeout_s : float
        How long to wait for the lock before raising ``filelock.Timeout``; -1: forever.
    """
    kind = FileLock if _has_flock(path.parent) else SoftFileLock
    return kind(path, timeout=timeout_s, poll_interval=0.05)


def is_removed_by_hand(lock: BaseFileLock) -> bool:
    """Return whether a lock stays if the machine that holds it dies."""
    return isinstance(lock, SoftFileLock)


def _has_flock(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _WITHOUT:
                return False
            raise
    return True
