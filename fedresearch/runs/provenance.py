"""Where a run's numbers come from: code, versions, machine, command."""

import functools
import hashlib
import logging
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

from fedresearch.masking import masked_patch, masked_words

log = logging.getLogger("fedresearch")

_SECRET_FILES = (
    "**/.env*",
    "**/*.env",
    "**/*.pem",
    "**/*.key",
    "**/id_rsa*",
    "**/.netrc",
    "**/.pypirc",
    "**/secrets.*",
)
# Nothing that a repository's config names is run, and nothing is written.
_QUIET = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_ANY_OWNER = ("-c", "safe.directory=*")


def provenance(command: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is needed to run the same code again: git commit, versions of all packages, machine, command.

    Returns
    -------
    fields : dict
        Of the record.
    patches : dict of str to str
        What was changed and not committed, by where; files that git does not track, and secrets, are not in it.
    """
    folders = {"fedresearch": (Path(__file__).parent, "provenance.py"), "working_directory": (Path.cwd(), ".")}
    checkouts = {name: _checkout(*where) for name, where in folders.items()}
    fields = {
        "command": shlex.join(masked_words(command)),
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
    """Return the state of the checkout that tracks a path in a folder, and its uncommitted patch; None without one.

    Of a repository of another owner it is the commit alone: all else may run what that owner's config names.
    """
    # A package installed below someone's repository is not of it.
    is_own = _git(folder, "ls-files", "--error-unmatch", tracked) is not None
    if not is_own and _git(folder, "ls-files", "--error-unmatch", tracked, config=_ANY_OWNER) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD", config=() if is_own else _ANY_OWNER)
    if commit is None:
        return None
    patch = _patch(folder) if is_own else None
    status = _git(folder, "status", "--porcelain") if is_own else None
    if patch is None or status is None:
        why = "git cannot read it" if is_own else "it belongs to another user"
        hint = "" if is_own else f"; git config --global --add safe.directory {shlex.quote(str(folder))} records them"
        log.warning("uncommitted changes in the repository of %s are not recorded: %s%s", folder, why, hint)
        return {"commit": commit.strip(), "dirty": None, "diff_sha256": None}, ""
    state = {
        "commit": commit.strip(),
        "dirty": bool(status),
        "diff_sha256": hashlib.sha256(patch.encode()).hexdigest() if patch else None,
    }
    return state, patch


def _patch(folder: Path) -> str | None:
    """Return the uncommitted changes, without secrets; None where git cannot read them."""
    plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
    secret = [f":(top,glob){pattern}" for pattern in _SECRET_FILES]
    patch = _git(
        folder, *plain, "HEAD", "--", ":(top)", *(f":(top,exclude,glob){pattern}" for pattern in _SECRET_FILES)
    )
    left_out = _git(folder, *plain, "--name-only", "HEAD", "--", *secret)
    if patch is None or left_out is None:
        return None
    # Whoever applies a patch passes over what stands before it.
    first = f"Left out, for they may hold secrets: {', '.join(left_out.splitlines())}\n" if left_out else ""
    return first + masked_patch(patch)


def _git(folder: Path, *arguments: str, config: Sequence[str] = ()) -> str | None:
    command = ["git", "-C", str(folder), *_QUIET, *config, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="backslashreplace")


def _processor() -> str:
    """Return the processor's model: another one may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
