"""What is seen from outside a process: its memory over many rounds, its start, a million clients, its files' cost."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.ours import OUTPUTS, ROOT
from scripts.benchmark.peers import run_python

_POLL_S = 0.005
_TRACKERS = ("none", "tensorboard", "wandb")


def memory(hardware: Sequence[str], early: int = 100, late: int = 1000) -> dict[str, Any]:
    """Return the resident memory of W2's process tree after some rounds and after many, by hardware."""
    figures = {}
    for option in hardware:
        got = run_python("scripts.benchmark.processes", "memory", option, str(early), str(late))
        figures[option] = {"early_round": early, "late_round": late, **got, "growth": got["late"] / got["early"]}
    return figures


def scale(hardware: Sequence[str], num_clients: int = 1_000_000) -> dict[str, Any]:
    """Return start-up and peak memory with many clients, by hardware, each in a fresh process."""
    return {
        option: {
            "num_clients": num_clients,
            **run_python("scripts.benchmark.processes", "scale", option, str(num_clients)),
        }
        for option in hardware
    }


def cold(hardware: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
    """Return the seconds from typing a command to the first round's row, of the default experiment and of Flower."""
    figures: dict[str, Any] = {}
    for option in hardware:
        if (ROOT / "conf" / "hardware" / f"{option}.yaml").exists():
            figures[option] = {"first_row_s": _first_row(option)}
    if "flower" in peers:
        started = time.time()
        ended = run_python("scripts.benchmark.flower_peer", "cold", "--rounds", "1")["first_round_ended"]
        figures["flower"] = {"first_row_s": ended - started}
        for option, own in figures.items():
            if option != "flower":
                own["times_flower"] = figures["flower"]["first_row_s"] / own["first_row_s"]
    return figures


def long(num_rounds: int = 10_000) -> dict[str, Any]:
    """Return the seconds a round of whole runs of W1a, and those that its rounds take within.

    Between rounds come the row, trackers and checkpoints; the clients' table is written within a round.
    """
    alone = ["tracker=none", "clients_table=false", "checkpoint.every=0"]
    runs = {"rounds alone": alone, **{f"tracker={name}": [f"tracker={name}"] for name in _TRACKERS}}
    return {name: {"rounds": num_rounds, **_run_long(overrides, num_rounds)} for name, overrides in runs.items()}


def _run_long(overrides: Sequence[str], num_rounds: int) -> dict[str, float]:
    from scripts.benchmark.workloads import log_normal_sizes

    options = [
        *("hardware=batched", "dataset=synthetic", "dataset.num_devices=200", "model=logistic", "partitioner=size"),
        f"partitioner.partition_sizes={log_normal_sizes(1000)}",
        *("validation.fraction=0", "local.epochs=1", "optimizer.lr=0.01", f"federation.num_rounds={num_rounds}"),
        *("federation.fraction_train=0.01", "federation.fraction_evaluate=0", "federation.evaluate_initial=false"),
        f"federation.evaluate_every={num_rounds}",
    ]
    with tempfile.TemporaryDirectory(dir=OUTPUTS) as folder:
        run = Path(folder).resolve() / "run"
        command = [sys.executable, "-m", "fedresearch.main", *options, *overrides, f"hydra.run.dir={run}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:-1]
    whole_s = rows[-1]["time/total_s"] - rows[0]["time/total_s"]
    within_s = sum(row["time/round_s"] for row in rows[1:])
    return {"round_s": within_s / (len(rows) - 1), "whole_s": whole_s / (len(rows) - 1)}


def _first_row(hardware: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        metrics, log = Path(folder, "run", "metrics.jsonl"), Path(folder, "log")
        started = time.perf_counter()
        with log.open("w") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fedresearch.main"),
                    *(f"hardware={hardware}", "tracker=none", f"hydra.run.dir={metrics.parent}"),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while not (metrics.exists() and metrics.stat().st_size):
                    if process.poll() is not None:
                        raise RuntimeError(
                            f"hardware={hardware} ended before its first row:\n{log.read_text()[-4000:]}"
                        )
                    time.sleep(_POLL_S)
                return time.perf_counter() - started
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)


def _tree(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    tree = [pid]
    for member in tree:
        tree += parents.get(member, [])
    return tree


def _resident(key: str) -> int:
    """Return the bytes of this process and its children: ``"VmRSS"`` now, ``"VmHWM"`` at most."""
    total = 0
    for pid in _tree(os.getpid()):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key):
                total += int(line.split()[1]) * 1024
    return total


def _age() -> float:
    """Return how many seconds ago this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _memory(hardware: str, early: int, late: int) -> dict[str, Any]:
    from scripts.benchmark.ours import Ours
    from scripts.benchmark.workloads import WORKLOADS, data_of

    figures = {}
    with Ours(WORKLOADS["W2"], data_of("W2"), hardware) as ours:
        for server_round in range(1, late + 1):
            ours.round(server_round)
            if server_round in (early, late):
                figures["early" if server_round == early else "late"] = _resident("VmRSS")
    return figures


def _scale(hardware: str, num_clients: int) -> dict[str, Any]:
    from dataclasses import replace

    from scripts.benchmark.ours import Ours
    from scripts.benchmark.workloads import WORKLOADS, LazyData

    work = replace(WORKLOADS["W6-1000"], data=lambda: LazyData(num_clients))
    import_s, imported = _age(), time.perf_counter()
    with Ours(work, work.data(), hardware) as ours:
        built = time.perf_counter()
        ours.round(1)
        first = time.perf_counter()
        ours.round(2)
        second = time.perf_counter()
        return {
            "import_s": import_s,
            "startup_s": built - imported,
            "first_s": first - built,
            "round_s": second - first,
            "peak": _resident("VmHWM"),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["memory", "scale"])
    parser.add_argument("hardware")
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    # By their importable names, which workers can unpickle.
    from scripts.benchmark import processes

    if arguments.what == "memory":
        figures = processes._memory(arguments.hardware, *arguments.numbers)
    else:
        figures = processes._scale(arguments.hardware, *arguments.numbers)
    arguments.out.write_text(json.dumps(figures))
