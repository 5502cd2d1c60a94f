"""Files as they are found in somebody's directory, read only where reading comes to an end."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from fedresearch.errors import InputError, reason

# Bytes that are read beyond a file's size: those of the system's own say that it is 0.
_MORE = 2**20


def refuse_irregular(path: Path, max_bytes: int | None = None) -> None:
    """Refuse a path that is not a regular file, or is too large: a FIFO waits for a writer, a device never ends.

    Parameters
    ----------
    path : Path
        Links are followed.
    max_bytes : int, optional
        The largest size; None: any.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is nothing.
    InputError
        With what is there instead.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} cannot be read: it is not a regular file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise InputError(f"{path} cannot be read: it has {found.st_size:,} bytes, and at most {max_bytes:,} are read")


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder's. A path that cannot exist, such as one with too long a name, is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def why_no_folder(path: Path) -> str:
    """Return why a path is not a folder's; "" if it is."""
    if is_folder(path):
        return ""
    return "is not a directory" if os.path.lexists(path) else "does not exist"


def refuse_no_folders(paths: Sequence[Path], hint: str) -> None:
    """Refuse paths that are not folders'.

    Raises
    ------
    InputError
        With one line for each, which ends with the hint.
    """
    if lines := [f"{path} {why}; {hint}" for path in paths if (why := why_no_folder(path))]:
        raise InputError(*lines)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file that is no larger than ``max_bytes``.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is nothing.
    InputError
        If it cannot be read, is not a regular file or is too large.
    """
    refuse_irregular(path, max_bytes)
    try:
        # Not blocking, in case a FIFO has taken its place; cut, in case it grows.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            # Python reserves the memory for all that it may read.
            content = file.read(min(max_bytes, os.fstat(file.fileno()).st_size + _MORE))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise unreadable(path, error) from None
    if content is None:  # such as of the kernel's log
        raise InputError(f"{path} cannot be read: one waits for its content")
    return content


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the line on a path that the system refuses."""
    return InputError(f"{path} cannot be read: {reason(error)}")
