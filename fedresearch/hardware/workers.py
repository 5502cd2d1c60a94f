"""Clients that run on the cores of this machine, in persistent processes that run one client at a time."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Self

from flwr.app import Context, Message, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedresearch.federation import flower
from fedresearch.federation.client_app import Clients
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.ordered import answer, pickle_reply
from fedresearch.hardware.pool import PoolGrid, Worker, WorkerDied
from fedresearch.hardware.scratch import shorten_multiprocessing
from fedresearch.hardware.shared import SharedObject, load_shared, map_shared
from fedresearch.hardware.threads import limit_threads

# Seconds that processes have to exit before they are killed.
_STOP_TIMEOUT_S = 5


class WorkerGrid(PoolGrid):
    """A Grid whose clients run in worker processes.

    The processes are started once. The ClientApp is pickled once into memory that all of them map, and so are each
    round's global arrays.

    Parameters
    ----------
    client_app : ClientApp
        The app of every client; it must be picklable.
    num_supernodes : int
        Number of clients.
    workers : int or "auto"
        Number of processes, at most the number of clients; auto: the cores that this process may use.
    threads : int
        Torch threads of a process. More than one may change the order of sums.
    run_config : mapping, optional
        The clients' ``context.run_config``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        workers: int | Literal["auto"] = "auto",
        threads: int = 1,
        run_config: UserConfig | None = None,
    ) -> None:
        super().__init__(client_app, num_supernodes, run_config)
        self._num_workers = min(max(1, num_cores() // threads) if workers == "auto" else workers, num_supernodes)
        self._threads = threads
        self._starter = multiprocessing.get_context("forkserver")
        self._starter.set_forkserver_preload([__name__, "fedresearch.hardware.ignore_job_signals"])
        shorten_multiprocessing()
        forkserver.ensure_running()  # its imports take seconds, so start them now
        self._app: SharedObject | None = None
        self._published: list[SharedObject] = []

    def __enter__(self) -> Self:
        """Start the processes, which prepare while this one continues."""
        self._app = SharedObject(self._client_app)
        self._start_missing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the processes, even during a task."""
        for worker in self._workers:
            worker.connection.close()  # upon which they exit
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for worker in self._workers:
            worker.stop(max(0, deadline - time.monotonic()))
        self._workers.clear()
        self._close_published()
        if self._app is not None:
            self._app.close()

    def _answer(self, messages: Any) -> Iterable[Message]:
        try:
            return super()._answer(messages)
        finally:
            self._close_published()

    def _close_published(self) -> None:
        while self._published:
            self._published.pop().close()

    def _start_missing(self) -> None:
        assert self._app is not None, "the grid is not open"
        while len(self._workers) < self._num_workers:
            self._workers.append(_Process(self._starter, self._app, self._threads))

    def _publish(self, content: RecordDict) -> SharedObject:
        self._published.append(SharedObject(content))
        return self._published[-1]

    def _ready(self) -> Iterable[Worker]:
        ready = wait([worker.connection for worker in self._workers], timeout=self.warn_after_s / 10)
        return [worker for worker in self._workers if worker.connection in ready]


class _Process:
    """The main process's side of a worker process."""

    def __init__(self, starter: ForkServerContext, app: SharedObject, threads: int) -> None:
        self.tasks: deque[int] = deque()
        self.connection, theirs = starter.Pipe()
        self._process = starter.Process(target=_work, args=(theirs, threads), daemon=True)
        self._process.start()
        self.name = f"process {self._process.pid}"
        theirs.close()
        with suppress(OSError):  # it has died already, which the first submission detects
            self._share(app)

    def submit(self, task: int, metadata: Metadata, content: SharedObject, context: Context) -> None:
        try:
            if content is not self._has:
                self._share(content)
            self.connection.send_bytes(pickle.dumps((metadata, context), protocol=5))
        except OSError:
            raise WorkerDied(self._end()) from None

    def result(self) -> tuple[Message, RecordDict]:
        try:
            reply, state = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied(self._end()) from None
        if isinstance(reply, str):
            raise RuntimeError(f"a worker could not start:\n{reply}")
        return reply, state

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        self.connection.close()  # upon which the process exits
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()

    def _share(self, shared: SharedObject) -> None:
        self._has = shared
        self.connection.send_bytes(pickle.dumps(shared.sizes))
        reduction.send_handle(self.connection, shared.fd, self._process.pid)

    def _end(self) -> str:
        self.stop()
        code = self._process.exitcode
        return (
            f"exit code {code}" if code is None or code >= 0 else f"killed by signal {-code}, {_describe_signal(-code)}"
        )


def _describe_signal(number: int) -> str:
    return f"{signal.strsignal(number)}" + ": out of memory?" * (number == signal.SIGKILL)


def _work(connection: Connection, threads: int) -> None:
    """Answer messages until the main process closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one stops this one
    multiprocessing.current_process().daemon = False  # in this process, so that a DataLoader may start workers
    limit_threads(threads)
    flower.quieten()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        app = load_shared(inbox.get())
    except (Exception, SystemExit):
        with suppress(OSError):  # another worker has reported it
            connection.send_bytes(pickle.dumps((traceback.format_exc(), None)))
        return
    while True:
        item = inbox.get()
        if isinstance(item, list):
            parts, content = item, load_shared(item)
            continue
        metadata, context = item
        message = flower.message(metadata, content)
        result = pickle_reply(message, answer(app, message, context), context.state)
        try:
            connection.send_bytes(result)
        except OSError:  # the main process has ended
            return
        if not isinstance(app, Clients):  # the app may have written into it
            content = load_shared(parts)


def _receive(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Receive messages while the client works, and exit when the connection closes."""
    try:
        while True:
            item = pickle.loads(connection.recv_bytes())
            inbox.put(map_shared(reduction.recv_handle(connection), item) if isinstance(item, list) else item)
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
