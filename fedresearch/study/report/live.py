"""A report's page on this machine alone, which follows its runs while they run. It writes nothing.

The page asks for ``data.json``, the document that it was made from, and draws it when the runs' files have changed.
"""

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from fedresearch.errors import InputError, one_line, readable, reason
from fedresearch.runs.record import METRICS, RECORD, REFUSED
from fedresearch.study.report.build import Report
from fedresearch.study.report.document import document, waiting_document
from fedresearch.study.report.load import find_runs, load
from fedresearch.study.report.page import page

LOOPBACK = "127.0.0.1"
# Another name in a request is of a web page that had its own name resolved to this machine.
_NAMES = (LOOPBACK, "localhost")


class LiveServer(ThreadingHTTPServer):
    """Serves the page of a report, and its document as JSON.

    Parameters
    ----------
    paths : sequence of Path
        Where the runs are.
    build : callable
        Returns the report of the runs as they are now.
    port : int
        0: any that is free.

    Raises
    ------
    InputError
        If the port cannot be used, or the report cannot be built although no run is to come or under way.
    """

    def __init__(self, paths: Sequence[Path], build: Callable[[], Report], port: int = 0) -> None:
        self._paths, self._build = paths, build
        self._lock = Lock()
        self._tag, self._document = "", dict[str, Any]()
        # Why there is no report yet, while runs are missing or running; "" from the first one on.
        self.missing = "rounds"
        self.current()
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} cannot be used: {reason(error)}; leave it out for a free one") from None

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error's traceback, unless it is of a browser that has left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def current(self) -> tuple[str, Mapping[str, Any]]:
        """Return the document of the runs' files as they are, and a tag that differs where these differ."""
        with self._lock:
            tag = f'"{_state_of_files(self._paths)}"'  # before they are read: what they gain meanwhile is read again
            if tag != self._tag:
                try:
                    self._document, self.missing = document(self._build(), {}), ""
                except InputError as error:
                    runs = load(self._paths) if self.missing else []
                    if not any(run.may_grow for run in runs):
                        raise
                    self.missing = one_line(error)
                    self._document = waiting_document(self.missing, runs)
                self._tag = tag
            return self._tag, self._document


def serve(paths: Sequence[Path], build: Callable[[], Report], port: int) -> None:
    """Serve until Ctrl-C. The parameters and errors are those of :class:`LiveServer`."""
    gc.enable()  # of each report only the last is kept
    with LiveServer(paths, build, port) as server:
        print(f"{server.address} shows the report and follows its runs; Ctrl-C ends it", flush=True)
        if server.missing:
            print(f"nothing to report yet: {server.missing}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def _state_of_files(paths: Sequence[Path]) -> str:
    """Return a digest of the names, sizes and times of the runs' files."""
    state = sha256()
    for directory in find_runs(paths):
        for name in (RECORD, METRICS, REFUSED):
            try:
                found = (directory / name).stat()
            except OSError:
                continue
            state.update(f"{directory / name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="replace"))
    return state.hexdigest()[:16]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET alone."""

    server: LiveServer

    def do_GET(self) -> None:
        """Send the page or its document."""
        host = self.headers.get("Host", "")
        path = urlsplit(self.path).path
        if host.partition(":")[0] not in _NAMES:
            self._send(HTTPStatus.FORBIDDEN, f"the host must be {' or '.join(_NAMES)}; open {self.server.address}")
        elif path not in ("/", "/data.json"):
            self._send(HTTPStatus.NOT_FOUND, f"there is nothing but {self.server.address}")
        else:
            self._send_report(path)

    def _send_report(self, path: str) -> None:
        try:
            tag, values = self.server.current()
        except Exception as error:  # of runs that are damaged, or were removed: the next request may find them
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, one_line(readable(error)))
            return
        if path == "/":
            self._send(HTTPStatus.OK, page(values, tag=tag), "text/html")
        elif self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, "", tag=tag)
        else:
            self._send(HTTPStatus.OK, json.dumps(values, allow_nan=False), "application/json", tag)

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain", tag: str = "") -> None:
        content = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing of single requests."""
