"""Starts Python commands as forks of a process that has imported what they need, which takes seconds each time.

Such a command has all that a process of its own has (id, session, folder, environment, streams, signals), but for what
Python and modules read of the environment as they start. A test that is about start-up
starts a process of its own. With ``WARM_RERUN`` in its environment, a command that runs fedresearch again does
so in a fork too.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import types
from multiprocessing.connection import Client, Listener
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What fedresearch.main imports; that itself is imported by whoever runs it.
LIGHT = (
    "fedresearch.hydra_app",
    *("fedresearch.study.sweep.callback", "fedresearch.study.sweep.sweeper", "fedresearch.study.sweep.status"),
)
HEAVY = (
    *LIGHT,
    "fedresearch.experiment.run",
    "fedresearch.tracking.wandb_tracker",
    "fedresearch.study.report.build",
    "flwr_datasets.partitioner",
    "torch._dynamo",  # an optimizer's first step imports it
    "wandb.sdk.launch.inputs.internal",  # wandb.init imports it
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
    """Take on a job's session, streams, folder and environment."""
    os.setsid()
    for number, name in enumerate((os.devnull, *job["streams"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.path[0] = job["cwd"]
    if job["env"].pop("WARM_RERUN", None):
        subprocess.Popen = functools.partial(_popen, subprocess.Popen)
    _change_to(job["cwd"], job["env"])
    os.close(job["ready"])  # its session and its streams are there


def _popen(popen, command, **options):
    """Run ``python -P -c CODE ...`` in a fork, to be waited for, and what is another command as it is."""
    if command[1:3] != ["-P", "-c"]:
        return popen(command, **options)
    process = multiprocessing.get_context("fork").Process(target=_run_again, args=(command[2:],), kwargs=options)
    process.start()
    process.wait = process.join
    return contextlib.nullcontext(process)


def _run_again(words, cwd, env):
    _change_to(cwd, env)
    _run(words)


def _change_to(cwd, env):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it is read of the environment
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))


def _run(words):
    sys.orig_argv = [sys.executable, *words]
    kind, what, *sys.argv[1:] = words
    if kind == "-c":
        sys.argv[0] = kind
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))
    else:
        sys.modules.pop(what, None)  # it is run, whether imported or not
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def _exit(code):
    """End as Python does, but without taking down one by one all the objects that it shares with other forks."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is there is the forks' in common
    job = _next_job()
    _become(job)
    try:
        _run(job["arguments"])
    except SystemExit as end:
        _exit(end.code)
    _exit(None)
