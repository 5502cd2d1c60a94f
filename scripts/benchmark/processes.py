"""What is seen from outside a process: its memory over a thousand rounds, its start, and a million clients."""

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

from scripts.benchmark.peers import ROOT, run_python

_POLL_S = 0.005


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
