"""Where a run's numbers come from: code, versions, machine, command."""

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


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Return what is needed to run the same code again: git commit, versions of all packages, machine, command."""
    return {
        "command": shlex.join(command),
        "working_directory": str(Path.cwd()),
        "git": {
            "fedresearch": _git(Path(__file__).parent, "provenance.py"),
            "working_directory": _git(Path.cwd(), "."),
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "versions": dict(sorted({d.metadata["Name"]: d.version for d in distributions()}.items())),
    }


def peak_memory_bytes() -> int:
    """Return the most memory that this process, or any one that it started and that has ended, has held so far."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)


def uncommitted() -> dict[str, str]:
    """Return what was changed and not committed, as patches by where.

    Files that git does not track are not in it.
    """
    patches = {
        "fedresearch": _git_output(Path(__file__).parent, "diff", "HEAD"),
        "working_directory": _git_output(Path.cwd(), "diff", "HEAD"),
    }
    if patches["working_directory"] == patches["fedresearch"]:
        del patches["working_directory"]  # one repository
    return {name: patch for name, patch in patches.items() if patch}


def _git(folder: Path, tracked: str) -> dict[str, Any] | None:
    """Return the commit of the checkout that tracks a path in a folder and whether it is dirty, or None without one."""
    # A package installed below someone's repository is not of it.
    if _git_output(folder, "ls-files", "--error-unmatch", tracked) is None:
        return None
    commit = _git_output(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    patch = _git_output(folder, "diff", "HEAD")
    return {
        "commit": commit.strip(),
        "dirty": bool(_git_output(folder, "status", "--porcelain")),
        "diff_sha256": hashlib.sha256(patch.encode()).hexdigest() if patch else None,
    }


def _git_output(folder: Path, *arguments: str) -> str | None:
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
