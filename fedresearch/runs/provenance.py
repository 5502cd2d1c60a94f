"""Where a run's numbers come from: code, versions, machine, command."""

import functools
import hashlib
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def provenance(command: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is needed to run the same code again: git commit, versions of all packages, machine, command.

    Returns
    -------
    fields : dict
        Of the record.
    patches : dict of str to str
        What was changed and not committed, by where; files that git does not track are not in it.
    """
    folders = {"fedresearch": (Path(__file__).parent, "provenance.py"), "working_directory": (Path.cwd(), ".")}
    checkouts = {name: _checkout(*where) for name, where in folders.items()}
    fields = {
        "command": shlex.join(command),
        "working_directory": str(Path.cwd()),
        "git": {name: checkout and checkout[0] for name, checkout in checkouts.items()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "versions": dict(_versions()),
    }
    patches = {name: checkout[1] for name, checkout in checkouts.items() if checkout and checkout[1]}
    if patches.get("working_directory") == patches.get("fedresearch"):
        patches.pop("working_directory", None)  # one repository
    return fields, patches


def peak_memory_bytes() -> int:
    """Return the most memory that this process, or any one that it started and that has ended, has held so far."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Return the name and version of each installed package; a process reads them once, which takes a tenth second."""
    found = [distribution.metadata for distribution in distributions()]
    return tuple(sorted({metadata["Name"]: metadata["Version"] for metadata in found}.items()))


def _checkout(folder: Path, tracked: str) -> tuple[dict[str, Any], str] | None:
    """Return the state of the checkout that tracks a path in a folder, and its uncommitted patch; None without one."""
    # A package installed below someone's repository is not of it.
    if _git(folder, "ls-files", "--error-unmatch", tracked) is None:
        return None
    commit, patch = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "HEAD")
    if commit is None:
        return None
    state = {
        "commit": commit.strip(),
        "dirty": bool(_git(folder, "status", "--porcelain")),
        "diff_sha256": hashlib.sha256(patch.encode()).hexdigest() if patch else None,
    }
    return state, patch or ""


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """Return the processor's model: another one may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
