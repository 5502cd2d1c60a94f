"""Libraries of compiled C++, which are made when they are first needed on a machine."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedresearch.errors import InputError, one_line
from fedresearch.local.code_folder import code_folder

_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
_COMPILERS = ("c++", "g++", "clang++")


class KernelUnavailable(Exception):
    """Compiled code cannot be used here; the text is the reason."""


def library(source: Path, cache_dir: str | Path, *, contracts: bool) -> ctypes.CDLL:
    """Return the library of a source for this processor, which is compiled if it is not in the folder of compiled code.

    Parameters
    ----------
    source : path
        The C++.
    cache_dir : path
        The parent of the folder of compiled code.
    contracts : bool
        Whether a product and a sum may be rounded once, where the processor can; otherwise each is rounded, so that the
        bits are the same on all processors.

    Raises
    ------
    KernelUnavailable
        If it cannot be compiled or loaded.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [*filter(shutil.which, _COMPILERS)][:1]
    if not compiler or not shutil.which(compiler[0]):
        named = f"{compiler[0]} does not exist" if compiler else f"none of {', '.join(_COMPILERS)} exists"
        raise KernelUnavailable(f"{named}; install a C++ compiler, or set CXX=PATH")
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = (*compiler, *_FLAGS, native)
    own = (*command, f"-ffp-contract={'fast' if contracts else 'off'}")
    try:
        folder = code_folder(cache_dir)
        text = source.read_bytes()
        digest = hashlib.sha256(b"\0".join([text, _macros(command), *map(str.encode, own)])).hexdigest()[:32]
        path = folder / f"{source.stem}-{digest}.so"
        if not path.exists():
            # Under a name of its own until it is whole: another process may compile or load it at the same time.
            with tempfile.TemporaryDirectory(dir=folder) as making:
                _run([*own, str(source), "-o", f"{making}/{path.name}"])
                Path(making, path.name).replace(path)
        return ctypes.CDLL(str(path))
    except (InputError, OSError) as error:
        raise KernelUnavailable(one_line(error)) from error


@functools.cache
def _macros(command: tuple[str, ...]) -> bytes:
    """Return a compiler's macros, which name its version and the processor's instructions."""
    return _run([*command, "-dM", "-E", "-x", "c++", os.devnull])


def _run(command: Sequence[str]) -> bytes:
    """Return what a compiler prints.

    Raises
    ------
    KernelUnavailable
        If it fails.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in errors if "error" in line), errors[-1])
        raise KernelUnavailable(f"{command[0]} cannot compile the kernel: {reason}")
    return done.stdout
