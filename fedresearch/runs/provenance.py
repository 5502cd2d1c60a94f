"""Where a run's numbers come from: code, versions, machine, command."""

import os
import platform
import shlex
import subprocess
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


def _git(folder: Path, tracked: str) -> dict[str, Any] | None:
    """Return the commit of the checkout that tracks a path in a folder and whether it is dirty, or None without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", tracked)  # a package installed below someone's repository is not of it
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
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
