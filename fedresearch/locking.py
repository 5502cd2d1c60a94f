"""A lock that a file stands for, on file systems with ``flock`` and without."""

import errno
import fcntl
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

# What file systems say that have no flock, as some Lustre and NFS, or whose lock server does not answer.
_WITHOUT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def file_lock(path: Path, timeout_s: float = -1) -> BaseFileLock:
    """Return a lock between processes, of the system where it has any in the file's folder.

    The system releases a dead process's lock. Where it has none, the file itself is the lock, with its holder's process
    and machine in it: it is taken over where the process is dead, and on another machine must be removed by hand.

    Parameters
    ----------
    path : Path
        The file, in a folder that exists.
    timeout_s : float
        How long entering it may wait before it raises ``filelock.Timeout``; -1: for ever.
    """
    kind = FileLock if _has_flock(path.parent) else SoftFileLock
    return kind(path, timeout=timeout_s, poll_interval=0.05)


def is_removed_by_hand(lock: BaseFileLock) -> bool:
    """Return whether a lock stays when the machine of its holder dies."""
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
