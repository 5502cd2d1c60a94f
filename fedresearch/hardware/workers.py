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

from flwr.app import Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedresearch.federation import flower
from fedresearch.federation.client_app import Clients
from fedresearch.federation.layout import HeldRows, Layout
from fedresearch.federation.stack import StackedReplies
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.ordered import answer, pickle_reply
from fedresearch.hardware.pool import Answer, PoolGrid, Train, Worker, WorkerDied, layout_of, train
from fedresearch.hardware.scratch import shorten_multiprocessing
from fedresearch.hardware.shared import SharedMemory, SharedObject, load_shared, map_shared
from fedresearch.hardware.threads import limit_threads

# Memory by what it holds: the app, a content, or the rows of a round's replies.
_Shared = dict[str, SharedMemory]

# Seconds that processes have to exit before they are killed.
_STOP_TIMEOUT_S = 5


class WorkerGrid(PoolGrid):
    """A Grid whose clients run in worker processes.

    The processes are started once. The ClientApp is pickled once into memory that all of them map, and so are each
    round's global arrays. They write the models that they train into memory that this process maps.

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
        self._published: list[SharedMemory] = []
        self._block: SharedMemory | None = None

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

    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        try:
            return super()._fill(stack, clients, content)
        finally:
            self._close_published()

    def _rows(self, layout: Layout, num_rows: int) -> HeldRows:
        self._block = SharedMemory(layout.sizes(num_rows))
        self._published.append(self._block)
        return layout.rows_in(map_shared(os.dup(self._block.fd), self._block.sizes, for_all=True), num_rows)

    def _num_ahead(self) -> int:
        return 2 * self._num_workers

    def _close_published(self) -> None:
        self._block = None
        while self._published:
            self._published.pop().close()

    def _start_missing(self) -> None:
        assert self._app is not None, "the grid is not open"
        while len(self._workers) < self._num_workers:
            self._workers.append(_Process(self._starter, self._app, self._threads))

    def _publish(self, content: RecordDict) -> _Shared:
        shared = SharedObject(content)
        self._published.append(shared)
        return {"content": shared} if self._block is None else {"content": shared, "block": self._block}

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
        self._has: _Shared = {}
        with suppress(OSError):  # it has died already, which the first submission detects
            self._share({"app": app})

    def submit(self, published: _Shared, task: Answer | Train) -> None:
        try:
            self._share(published)
            self.connection.send_bytes(pickle.dumps(task, protocol=5))
        except OSError:
            raise WorkerDied(self._end()) from None

    def result(self) -> Any:
        try:
            result = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied(self._end()) from None
        if isinstance(result, RuntimeError):
            raise result
        return result

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        self.connection.close()  # upon which the process exits
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()

    def _share(self, shared: _Shared) -> None:
        for kind, memory in shared.items():
            if self._has.get(kind) is not memory:
                self._has[kind] = memory
                self.connection.send_bytes(pickle.dumps((kind, memory.sizes)))
                reduction.send_handle(self.connection, memory.fd, self._process.pid)

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
        app = load_shared(inbox.get()[1])
    except (Exception, SystemExit):
        with suppress(OSError):  # another worker has reported it
            connection.send_bytes(pickle.dumps(RuntimeError(f"a worker could not start:\n{traceback.format_exc()}")))
        return
    content: Any = None  # it comes before the first task, and a block before the first training
    layout: Any = None
    parts: list[memoryview] = []
    block: list[memoryview] = []
    while True:
        match inbox.get():
            case Answer(metadata, context):
                message = flower.message(metadata, content)
                result = pickle_reply(message, answer(app, message, context), context.state)
                if not isinstance(app, Clients):  # the app may have written into it
                    content = load_shared(parts)
            case Train(client, row):
                result = pickle.dumps(train(app, content, client, layout, layout.rows_in(block, 1, row)), protocol=5)
            case "content", parts:
                content, block = load_shared(parts), []
                continue
            case "block", block:
                layout = layout_of(app, content)
                continue
        try:
            connection.send_bytes(result)
        except OSError:  # the main process has ended
            return


def _receive(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Receive messages while the client works, and exit when the connection closes."""
    try:
        while True:
            item = pickle.loads(connection.recv_bytes())
            if not isinstance(item, Answer | Train):
                kind, sizes = item
                item = kind, map_shared(reduction.recv_handle(connection), sizes, for_all=kind == "block")
            inbox.put(item)
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
