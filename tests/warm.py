"""Runs Python commands in forks of a process that has imported torch and Flower, which takes seconds each time.

Such a command has all that a process of its own has, but for what modules read of the environment as they are imported.
"""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd, env):
    """Run ``python ARGUMENTS``, which begin with ``-m``, as ``subprocess.run`` would that captures what it says."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        job = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
        process = _process()
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


@functools.cache
def _process():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)  # without a further line, it ends
    return process


def _next_job():
    """Fork for each line that comes in, and tell how the fork ended; return the job in the fork alone."""
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _become(job):
    """Take on a job's folder, environment, arguments and streams."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for number, name in enumerate((os.devnull, job["out"], job["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.orig_argv = [sys.executable, *job["arguments"]]
    sys.path[0] = job["cwd"]
    sys.path[1:1] = filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = job["arguments"][1:]


if __name__ == "__main__":
    import fedresearch.run
    import fedresearch.tracking.wandb_tracker  # noqa: F401

    _become(_next_job())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
