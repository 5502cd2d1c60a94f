"""A private Ray cluster on this machine for one run; using it requires the run's token."""

import json
import logging
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from fedresearch.errors import InputError
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.scratch import LONGEST_SOCKET, Scratch, fits_sockets, write_secret

_SOCKET = "/fr-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


@contextmanager
def own_cluster() -> Iterator[None]:
    """Start a cluster that listens on the loopback interface and requires a token, connect to it, and stop it.

    ``ray.init`` has no option for either: it replaces loopback by the machine's own address unless clusters are
    disabled, as on macOS, and reads the way to authenticate when it is imported.

    Raises
    ------
    InputError
        If RAY_TMPDIR is too long for its sockets.
    """
    scratch = Scratch("fr-", _parent())
    try:
        token = scratch.path / "token"
        write_secret(token, secrets.token_hex(32))
        loopback = mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False)
        inherited = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        with loopback, mock.patch.dict(os.environ, inherited):
            os.environ.pop("RAY_AUTH_TOKEN", None)
            _authenticate()
            ray.init(
                "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                num_cpus=num_cores(),
                include_dashboard=False,
                _temp_dir=str(scratch.path / "r"),  # a folder that Ray makes readable for every user
            )
        for daemon in _daemons():  # some would survive if this process is killed
            scratch.kill_at_exit(daemon)
        yield
    finally:
        ray.shutdown()
        _authenticate()
        scratch.close()


def _daemons() -> list[int]:
    """Return the descendants of this process without Ray's workers, which come and go."""
    command = ["ps", "-A", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    found = {os.getpid()}
    while more := {int(pid) for pid, parent, _ in rows if int(parent) in found} - found:
        found |= more
    return [
        int(pid)
        for pid, parent, args in rows
        if int(parent) in found and re.search(r"gcs_server|raylet |_monitor|[aA]gent", args)
    ]


def _authenticate() -> None:
    """Set Ray's authentication from the environment."""
    Config.initialize(json.dumps({"AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}))
    AuthenticationTokenLoader.instance().reset_cache()


def _parent() -> str:
    """Return the parent of the cluster's folder: RAY_TMPDIR, as for Ray, or that of temporary files, or /tmp."""
    chosen = os.environ.get("RAY_TMPDIR")
    folder = chosen or tempfile.gettempdir()
    if fits_sockets(folder, len(_SOCKET)):
        return folder
    if chosen:
        raise InputError(
            f"RAY_TMPDIR={chosen} is too long for the paths of Ray's sockets; "
            f"try a folder of at most {LONGEST_SOCKET - len(_SOCKET)} bytes, or unset it"
        )
    return "/tmp"
