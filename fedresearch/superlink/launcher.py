"""A SuperLink on this machine for one run, with its SuperNodes."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fedresearch.errors import InputError
from fedresearch.hardware.scratch import Scratch, write_secret
from fedresearch.superlink.certificates import write_certificates, write_node_key

_LOOPBACK = "127.0.0.1"
# Seconds for the ServerApp to record its interruption and to finish its trackers.
_GRACE_S = 15
# Seconds for the kernel to end killed processes. Limited: without an init that reaps, orphans stay as zombies.
_END_S = 5
_START_S = 60
# Of a SuperNode and its SuperExec (measured), without the process that each message starts.
_BYTES_PER_SUPERNODE = 250 * 10**6
# Secrets that the ServerApp needs for its tracker and the Hub; other processes do not get them.
_FOR_THE_SERVER = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_size(num_supernodes: int) -> None:
    """Reject more SuperNodes than the machine has memory for.

    Raises
    ------
    InputError
        With a number that fits.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = memory // _BYTES_PER_SUPERNODE
    if num_supernodes > room:
        raise InputError(
            f"hardware=superlink starts two processes for each SuperNode, 0.25 GB together: {num_supernodes} need "
            f"{num_supernodes * _BYTES_PER_SUPERNODE / 10**9:.0f} GB, this machine has {memory / 10**9:.0f}; "
            f"try federation.num_supernodes={max(1, room // 2)} or hardware=workers"
        )


class OwnSuperLink:
    """A SuperLink and SuperNodes on free ports of the loopback interface.

    Submitting needs a token, and only its own executors receive tasks; both secrets are in files that only this user
    can read. All processes end with this one.

    Parameters
    ----------
    num_supernodes : int
        How many SuperNodes to start.
    secure : bool
        Whether to use TLS and SuperNode authentication.
    scratch : Scratch
        Its folder holds all files: it is the SuperLink's FLWR_HOME.
    environment : mapping
        Of all processes; the ServerApp gets a few variables more.
    """

    def __init__(self, num_supernodes: int, secure: bool, scratch: Scratch, environment: Mapping[str, str]) -> None:
        self._num_supernodes, self._secure, self._scratch = num_supernodes, secure, scratch
        self._home = scratch.path
        self._environment = environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port, *self._node_ports = _free_ports(1 + num_supernodes)
        self.address = f"{_LOOPBACK}:{self._port}"

    def start(self, connect: Callable[[str, str | None], None], register: Callable[[str], None]) -> None:
        """Start all processes.

        Parameters
        ----------
        connect : callable
            Called with the address and the CA certificate before anything is registered.
        register : callable
            Registers a SuperNode's public key.

        Raises
        ------
        InputError
            If the SuperLink does not start.
        """
        client, server = ["--insecure"], ["--insecure"]
        if self._secure:
            server, client = write_certificates(self._home, _LOOPBACK)
            server.append("--enable-supernode-auth")
        connect(self.address, client[-1] if self._secure else None)
        token, task_secret = self._write_secrets()
        tasks = ["--superexec-auth-secret-file", task_secret]
        # The SuperLink would start its SuperExec in a separate session, out of our reach.
        here = ["--host", _LOOPBACK, "--port", str(self._port), "--isolation", "process"]
        self._run("flower-superlink", _guarded("flower-superlink"), token, *server, *here, *tasks)
        self._wait_for(self._port)
        needs = {name: os.environ[name] for name in _FOR_THE_SERVER if name in os.environ}
        superexec = _guarded("flower-superexec")
        self._run("flower-superexec", superexec, *client, "--runtime-api-address", self.address, *tasks, **needs)
        for i, node_port in enumerate(self._node_ports):
            key: list[str] = []
            if self._secure:
                private, public = write_node_key(self._home, i)
                register(public)
                key = ["--auth-supernode-private-key", private]
            node = [*client, *key, "--superlink", self.address, "--isolation", "process", *tasks]
            here = ["--host", _LOOPBACK, "--port", str(node_port)]
            config = f"partition-id={i} num-partitions={self._num_supernodes}"
            self._run(f"flower-supernode {i}", [program("flower-supernode")], *node, *here, "--node-config", config)
            there = ["--insecure", "--runtime-api-address", f"{_LOOPBACK}:{node_port}"]
            self._run(f"flower-superexec {i}", superexec, *there, *tasks)

    def stop(self) -> None:
        """End all processes: first the ServerApp, with time to record it."""
        executor = self._processes.get("flower-superexec")
        if executor is not None:  # its group includes the ServerApp
            _end_groups([executor], signal.SIGTERM, _GRACE_S)
        _end_groups(self._processes.values(), signal.SIGKILL, _END_S)

    def troubles(self) -> list[str]:
        """Return the last words of processes that have ended."""
        return [
            f"{name} has ended: {self._last_words(name)}"
            for name, process in self._processes.items()
            if process.poll() is not None
        ]

    def _write_secrets(self) -> tuple[str, str]:
        """Make the token for submitting, also in a file for ``flwr``, and the secret for receiving tasks."""
        token, task_secret = secrets.token_hex(32), secrets.token_hex(32)
        write_secret(self._home / "token", token)
        write_secret(self._home / "task-secret", task_secret)
        known = {"authn-type": "oidc", "oidc-access-token": token, "oidc-refresh-token": token}
        stored = {
            f"flower.account-auth.{self.address}.{key}": b64encode(value.encode()).decode()
            for key, value in known.items()
        }
        write_secret(self._home / "credentials.yaml", json.dumps(stored))
        return str(self._home / "token"), str(self._home / "task-secret")

    def _run(self, name: str, command: Sequence[str], *arguments: str, **environment: str) -> None:
        """Start a program in its own process group, which includes its children."""
        with (self._home / f"{name}.log").open("wb") as log:
            process = self._processes[name] = subprocess.Popen(
                [*command, *arguments],
                env={**self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._scratch.kill_at_exit(-process.pid)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((_LOOPBACK, port)) == 0:
                    return
            if self.troubles() or time.monotonic() > deadline:
                raise InputError(*(self.troubles() or [f"the SuperLink did not start within {_START_S} s"]))
            time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        lines = (self._home / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def program(name: str) -> str:
    """Return the path of one of Flower's programs."""
    return str(Path(sys.executable).parent / name)


def _guarded(name: str) -> list[str]:
    return [sys.executable, "-m", "fedresearch.superlink.programs", name]


def _end_groups(leaders: Collection[subprocess.Popen[bytes]], number: int, timeout_s: float) -> None:
    """Signal process groups, and wait until all their processes have ended."""
    for leader in leaders:
        _signal_group(leader, number)
    deadline = time.monotonic() + timeout_s
    for leader in leaders:
        while (leader.poll() is None or _signal_group(leader, 0)) and time.monotonic() < deadline:
            time.sleep(0.05)


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a process group; return whether any of its processes is left."""
    try:
        os.killpg(leader.pid, number)
    except (ProcessLookupError, PermissionError):  # it has ended; on macOS, it has only zombies
        return False
    return True


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
