"""A SuperLink to submit runs to: one that is there already, or one of this machine's own with its SuperNodes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from fedresearch.errors import InputError
from fedresearch.hardware.certificates import write_certificates, write_node_key

_LOOPBACK = "127.0.0.1"
# What the ServerApp needs to record that it was interrupted, and to tell its trackers.
_GRACE_S = 15
# What the kernel needs to end what was killed. Not for ever: where no init reaps, orphans stay as zombies.
_END_S = 5
_START_S = 60
_FLOWERS_OWN = re.compile(r"(\x1b\[\d+m)?(DEBUG|INFO)\b|Using SuperLink:|Successfully installed fedresearch to ")


class SuperLink:
    """Takes runs while it is open; whatever was started for it has ended when it is closed.

    Parameters
    ----------
    num_supernodes : int
        How many SuperNodes to start.
    address : str or None
        ``HOST:PORT`` of a SuperLink; None: start one, and the SuperNodes, on free ports of the loopback interface.
    root_certificates : str or None
        PEM file with the certificate of the authority that signed that of the SuperLink at the address; None: no TLS.
    secure : bool
        Whether what is started uses TLS and SuperNode authentication.
    timeout_s : float
        How long the ServerApp waits for SuperNodes.
    """

    def __init__(
        self,
        num_supernodes: int,
        address: str | None,
        root_certificates: str | None,
        secure: bool,
        timeout_s: float,
    ) -> None:
        self._num_supernodes = num_supernodes
        self._address = address
        self._root_certificates = root_certificates and str(Path(root_certificates).absolute())
        self._secure = secure
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start what is to be started."""
        self._folder = tempfile.TemporaryDirectory(prefix="fedresearch-", ignore_cleanup_errors=True)
        self._home = Path(self._folder.name)
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            # Seconds; Flower's own is 1. Many SuperNodes together shall not ask more often than few.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(min(1, 0.1 * self._num_supernodes)),
            "PYTHONUNBUFFERED": "1",
            # Flower starts its own programs by name, and a user's modules are found from here.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
        }
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            if self._address is None:
                self._start()
            else:
                self._connect_to(self._address, self._root_certificates)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what was started, and remove its files."""
        self._stop()

    def submit(self, experiment: str) -> str:
        """Submit an experiment, and return the run's id.

        Parameters
        ----------
        experiment : str
            What the apps find in their run config.

        Raises
        ------
        InputError
            If the SuperLink does not take it.
        """
        app = self._home / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(_APP.format(experiment=_toml(experiment)), encoding="utf-8")
        return str(self._flwr("run", str(app), "run")["run-id"])

    def log(self, run_id: str) -> Iterator[str]:
        """Yield the lines of a run's log as they come, without Flower's own, until the run ends."""
        command = [self._program("flwr"), "log", run_id, "run", "--stream"]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield from (line.rstrip("\n") for line in process.stdout if not _FLOWERS_OWN.match(line))
            finally:
                process.kill()

    def status(self, run_id: str) -> str:
        """Return how a run stands, in Flower's words: ``finished:completed`` where all went well."""
        return str(self._flwr("list", "run", "--run-id", run_id)["runs"][0]["status"])

    def stop(self, run_id: str) -> None:
        """Stop a run; one on a SuperLink of our own ends with it."""
        if self._address is not None:
            self._flwr("stop", run_id, "run")

    def troubles(self) -> list[str]:
        """Return what processes that have ended said last."""
        return [
            f"{name} has ended: {self._last_words(name)}"
            for name, process in self._processes.items()
            if process.poll() is not None
        ]

    def _connect_to(self, address: str, root_certificates: str | None) -> None:
        tls = "insecure = true" if root_certificates is None else f"root-certificates = {_toml(root_certificates)}"
        connection = f"[superlink]\ndefault = 'run'\n[superlink.run]\naddress = {_toml(address)}\n{tls}\n"
        (self._home / "config.toml").write_text(connection, encoding="utf-8")

    def _start(self) -> None:
        port, *node_ports = _free_ports(1 + self._num_supernodes)
        address = f"{_LOOPBACK}:{port}"
        client, server = ["--insecure"], ["--insecure"]
        if self._secure:
            server, client = write_certificates(self._home, _LOOPBACK)
            server.append("--enable-supernode-auth")
        self._connect_to(address, client[-1] if self._secure else None)
        # The SuperLink would start its SuperExec in a session of its own, out of our reach.
        here = ["--host", _LOOPBACK, "--port", str(port)]
        self._run("flower-superlink", "flower-superlink", *server, *here, "--isolation", "process")
        self._wait_for(port)
        self._run("flower-superexec", "flower-superexec", *client, "--runtime-api-address", address)
        for i, node_port in enumerate(node_ports):
            key: list[str] = []
            if self._secure:
                private, public = write_node_key(self._home, i)
                self._flwr("supernode", "register", public, "run")
                key = ["--auth-supernode-private-key", private]
            self._run(
                f"flower-supernode {i}",
                *("flower-supernode", *client, *key, "--superlink", address, "--host", _LOOPBACK),
                *("--port", str(node_port), "--node-config", f"partition-id={i} num-partitions={self._num_supernodes}"),
            )

    def _run(self, name: str, program: str, *arguments: str) -> None:
        """Start a program in a process group of its own, in which its children are too."""
        with (self._home / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [self._program(program), *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((_LOOPBACK, port)) == 0:
                    return
            if self.troubles() or time.monotonic() > deadline:
                raise InputError(*(self.troubles() or [f"the SuperLink did not start within {_START_S} s"]))
            time.sleep(0.1)

    def _stop(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            executor = self._processes.get("flower-superexec")
            if executor is not None:  # the ServerApp is in its group
                _end_groups([executor], signal.SIGTERM, _GRACE_S)
            _end_groups(self._processes.values(), signal.SIGKILL, _END_S)
            self._folder.cleanup()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Return what a command of Flower's answers; its exit code does not say whether it could."""
        done = subprocess.run(
            [self._program("flwr"), *arguments, "--format", "json"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {"success": False, "error-message": done.stderr or done.stdout}
        if not answer["success"]:
            said = " ".join(str(answer["error-message"]).strip().split("\n\n")[-1].removeprefix("Error: ").split())
            raise InputError(f"flwr {arguments[0]}: {said}; see hardware.address and hardware.root_certificates")
        return answer

    def _program(self, name: str) -> str:
        return str(Path(sys.executable).parent / name)

    def _last_words(self, name: str) -> str:
        lines = (self._home / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


_APP = """\
[project]
name = "fedresearch"
version = "0"
[tool.flwr.app]
publisher = "fedresearch"
[tool.flwr.app.components]
serverapp = "fedresearch.superlink_apps:server_app"
clientapp = "fedresearch.superlink_apps:client_app"
[tool.flwr.app.config]
overrides = ""
experiment = {experiment}
"""


def _toml(text: str) -> str:
    """Return a TOML string: a JSON string is one."""
    return json.dumps(text)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_groups(leaders: Collection[subprocess.Popen[bytes]], number: int, timeout_s: float) -> None:
    """Signal process groups, and wait for all in them to end."""
    for leader in leaders:
        _signal_group(leader, number)
    deadline = time.monotonic() + timeout_s
    for leader in leaders:
        while (leader.poll() is None or _signal_group(leader, 0)) and time.monotonic() < deadline:
            time.sleep(0.05)


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal all of a process group; return whether there is any of it left."""
    try:
        os.killpg(leader.pid, number)
    except (ProcessLookupError, PermissionError):  # gone; on macOS, zombies only
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
