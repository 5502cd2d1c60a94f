"""A SuperLink to submit runs to: an existing one, or one that is started here with its SuperNodes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from fedresearch.errors import InputError
from fedresearch.hardware.scratch import Scratch, write_secret
from fedresearch.masking import without_secrets
from fedresearch.superlink.launcher import OwnSuperLink, check_size, program

_FLOWERS_OWN = re.compile(r"(\x1b\[\d+m)?(DEBUG|INFO)\b|Using SuperLink:|Successfully installed fedresearch to ")


class SuperLink:
    """Accepts runs while it is open; closing it ends all processes that were started for it.

    Parameters
    ----------
    num_supernodes : int
        Number of SuperNodes to start.
    address : str or None
        ``HOST:PORT`` of a SuperLink; None: start one and the SuperNodes on free ports of the loopback interface.
    root_certificates : str or None
        PEM file with the CA certificate of the SuperLink at the address; None: no TLS.
    secure : bool
        Whether the started SuperLink uses TLS and SuperNode authentication.
    timeout_s : float
        How long the ServerApp waits for SuperNodes.

    Raises
    ------
    InputError
        If the machine does not have enough memory for the SuperNodes.
    """

    def __init__(
        self,
        num_supernodes: int,
        address: str | None,
        root_certificates: str | None,
        secure: bool,
        timeout_s: float,
    ) -> None:
        if address is None:
            check_size(num_supernodes)
        self._num_supernodes = num_supernodes
        self._address = address
        self._root_certificates = root_certificates and str(Path(root_certificates).absolute())
        self._secure = secure
        self._own: OwnSuperLink | None = None

    def __enter__(self) -> Self:
        """Start the SuperLink if needed, and connect to it."""
        self._scratch = Scratch()
        self._home = self._scratch.path
        self._environment = {
            **without_secrets(os.environ),
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            # Seconds; Flower's default is 1. Many SuperNodes together must not poll more often than few.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(min(1, 0.1 * self._num_supernodes)),
            "PYTHONUNBUFFERED": "1",
            # Flower starts its programs by name, and the user's modules are in the working directory.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
        }
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            if self._address is None:
                self._own = OwnSuperLink(self._num_supernodes, self._secure, self._scratch, self._environment)
                self._own.start(self._connect_to, self._register)
            else:
                self._connect_to(self._address, self._root_certificates)
                self._log_in()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the started processes and remove their files."""
        self._stop()

    def submit(self, experiment: str) -> str:
        """Submit an experiment, and return the run's id.

        Parameters
        ----------
        experiment : str
            The experiment in the run config of the apps.

        Raises
        ------
        InputError
            If the SuperLink rejects it.
        """
        app = self._home / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(_APP.format(experiment=_toml(experiment)), encoding="utf-8")
        return str(self._flwr("run", str(app), "run")["run-id"])

    def log(self, run_id: str) -> Iterator[str]:
        """Yield the lines of a run's log until the run ends, without Flower's own."""
        command = [program("flwr"), "log", run_id, "run", "--stream"]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield from (line.rstrip("\n") for line in process.stdout if not _FLOWERS_OWN.match(line))
            finally:
                process.kill()

    def status(self, run_id: str) -> str:
        """Return the status of a run in Flower's words; ``finished:completed`` is a success."""
        return str(self._flwr("list", "run", "--run-id", run_id)["runs"][0]["status"])

    def stop(self, run_id: str) -> None:
        """Stop a run; a run on a SuperLink that was started here ends with it."""
        if self._address is not None:
            self._flwr("stop", run_id, "run")

    def troubles(self) -> list[str]:
        """Return the last words of processes that have ended."""
        return [] if self._own is None else self._own.troubles()

    def _connect_to(self, address: str, root_certificates: str | None) -> None:
        tls = "insecure = true" if root_certificates is None else f"root-certificates = {_toml(root_certificates)}"
        connection = f"[superlink]\ndefault = 'run'\n[superlink.run]\naddress = {_toml(address)}\n{tls}\n"
        (self._home / "config.toml").write_text(connection, encoding="utf-8")

    def _register(self, public_key: str) -> None:
        """Let a SuperNode with a key connect."""
        self._flwr("supernode", "register", public_key, "run")

    def _log_in(self) -> None:
        """Use the login of ``flwr login``."""
        stored = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "credentials.yaml"
        if stored.is_file():
            write_secret(self._home / stored.name, stored.read_text(encoding="utf-8"))

    def _stop(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if self._own is not None:
                self._own.stop()
            self._scratch.close()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Return the output of one of Flower's commands; its exit code does not report failures."""
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"],
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


_APP = """\
[project]
name = "fedresearch"
version = "0"
[tool.flwr.app]
publisher = "fedresearch"
[tool.flwr.app.components]
serverapp = "fedresearch.superlink.apps:server_app"
clientapp = "fedresearch.superlink.apps:client_app"
[tool.flwr.app.config]
overrides = ""
experiment = {experiment}
"""


def _toml(text: str) -> str:
    """Return a TOML string: a JSON string is one."""
    return json.dumps(text)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
