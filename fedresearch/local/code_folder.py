"""The folder of compiled code."""

import os
import stat
from pathlib import Path

from fedresearch.errors import InputError

# The environment variable of Inductor's cache.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def code_folder(cache_dir: str | Path) -> Path:
    """Return a folder that only this user can write, since its code is executed.

    If ``TORCHINDUCTOR_CACHE_DIR`` is set, it is used under the same condition.

    Parameters
    ----------
    cache_dir : path
        The parent of the folder, which is created if missing.

    Raises
    ------
    InputError
        If it cannot be created, or if another user can write into it.
    """
    folder = Path(os.environ.get(VARIABLE) or Path(cache_dir).expanduser() / f"compiled-{os.geteuid()}").absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; try cache_dir=DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InputError(
            f"{folder} must be a folder that only you can write, since its code is executed; remove it, or try "
            f"cache_dir=DIR{f' without {VARIABLE}' if os.environ.get(VARIABLE) else ''}, or hardware.compile=false"
        )
    return folder
