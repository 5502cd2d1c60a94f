"""Starts Python commands as forks of a process that has imported what they need, which takes seconds each time.

Such a command has all that a process of its own has (id, session, folder, environment, streams, signals), but for what
Python and modules read of the environment as they start, and draws no picture of its partition. A test that is about
start-up starts a process of its own.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from multiprocessing.connection import Client, Listener
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What fedresearch.main imports; that itself is imported by whoever runs it.
LIGHT = ("hydra", "fedresearch.submission", "fedresearch.sweep.callback", "fedresearch.usage")
HEAVY = (
    *LIGHT,
    "fedresearch.run",
    "tests.no_picture",
    "fedresearch.tracking.wandb_tracker",
    "fedresearch.report.making",
    "torch._dynamo",  # with the first optimizer
    "sklearn.datasets",
    "sklearn.model_selection",
)


def python(*arguments, **options):
    """Run ``python ARGUMENTS`` as ``subprocess.run`` would that captures what it prints."""
    command = Command(*arguments, **options)
    out, err = command.communicate()
    return subprocess.CompletedProcess(arguments, command.returncode, out, err)


class Command:
    """``python ARGUMENTS`` at work, which begin with ``-m`` or ``-c``; as ``subprocess.Popen``, in its own session."""

    def __init__(self, *arguments, cwd, env, preload=HEAVY):
        self.returncode = None
        folder = Path(tempfile.mkdtemp(dir=_folder()))
        self._streams = [folder / "out", folder / "err"]
        with Listener(family="AF_UNIX") as listener:
            job = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": env, "answer": listener.address}
            server = _server(preload)
            server.stdin.write(json.dumps({**job, "streams": [*map(str, self._streams)]}) + "\n")
            server.stdin.flush()
            self._connection = listener.accept()
        self.pid = self._connection.recv()

    def poll(self):
        if self.returncode is None and self._connection.poll():
            self.returncode = self._connection.recv()
            self._connection.close()
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and not self._connection.poll(timeout):
            raise subprocess.TimeoutExpired("a warm command", timeout)
        return self.poll()

    def printed(self):
        """Return standard output and standard error, so far."""
        return tuple(stream.read_text() for stream in self._streams)

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.printed()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait()


@functools.cache
def _folder():
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def _server(preload):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", *preload],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(process.communicate)  # without a further line, it ends
    return process


def _next_job():
    """Fork a keeper for each line that comes in, which forks the job and, once that has its session and
    streams, sends its id; later, how it ended.

    Return the job, in the job alone.
    """
    while line := sys.stdin.readline():
        if os.fork():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass  # keepers that have ended
            continue
        job = json.loads(line)
        ready, job["ready"] = os.pipe()
        child = os.fork()
        if not child:
            return job
        os.close(job["ready"])
        os.read(ready, 1)  # nothing: it is closed
        with Client(job["answer"]) as connection:
            connection.send(child)
            connection.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    sys.exit()


def _become(job):
    """Take on a job's session, folder, environment, arguments and streams."""
    os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    tempfile.tempdir = None  # it is read of the environment
    for number, name in enumerate((os.devnull, *job["streams"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.orig_argv = [sys.executable, *job["arguments"]]
    sys.path[0] = job["cwd"]
    sys.path[1:1] = filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))
    os.close(job["ready"])  # its session and its streams are there


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is there is the forks' in common
    _become(_next_job())
    kind, what, *sys.argv[1:] = sys.orig_argv[1:]
    if kind == "-c":
        sys.argv[0] = kind
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))
    else:
        sys.modules.pop(what, None)  # it is run, whether imported or not
        runpy.run_module(what, run_name="__main__", alter_sys=True)
