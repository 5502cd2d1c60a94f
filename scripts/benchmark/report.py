"""The figures as Markdown, and the machine that they are of."""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedresearch.hardware.cores import num_cores
from scripts.benchmark import environment
from scripts.benchmark.bound import bound, speed


def machine() -> dict[str, Any]:
    """Return what the figures are of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": num_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("flwr", "ray", "numpy")},
        "peers": environment.versions(),
        **speed(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def head(machine: dict[str, Any]) -> str:
    """Return a line on the machine."""
    found = {**{name: machine[name] for name in ("python", "torch", "flwr", "ray")}, **machine["peers"]}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load']:.1f} at the start); {versions}. "
        f"On all cores, a matrix product does {machine['flop_per_s'] / 1e9:.0f} GFLOP/s, and a copy reads and writes "
        f"{machine['bytes_per_s'] / 1e9:.0f} GB/s. One torch thread a process, but for the loop on all cores; Flower "
        "with one CPU a client; others on one core, but for those on all cores. Medians after a warm-up round. x: how "
        "many times faster than the loop, or Flower, in the same run; with the first: over as many rounds as Flower's, "
        "the first, in which a step is compiled, included. x bound: how many times what a round's arithmetic takes at "
        "the speed of that product, or its bytes at that of the copy. From the loop: distance of the last model from "
        "the loop's, as a share of its way from the initial weights."
    )


def rounds(name: str, figures: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return a workload's table."""
    own_round = figures["round"]
    least_s = bound(own_round, machine)
    rows = []
    for side, own in figures["sides"].items():
        same = own.get("same_work")
        rows.append(
            [
                side,
                _seconds(own["round_s"]),
                _seconds(own["first_s"]),
                f"{own['round_s'] / figures['cohort'] * 1e6:,.0f}",
                _times(own.get("times_loop", own.get("times_local loop"))),
                _times(own.get("times_loop, all cores")),
                _times(own.get("times_loop, gpu")),
                _times(own.get("times_flower")),
                _times(own.get("times_flower_with_first")),
                _times(own["round_s"] / least_s if "gpu" not in side and "local" not in side else None),
                "" if same is None else f"{own['distance']:.0e}" + " **too far**" * (not same),
            ]
        )
    header = ["", "s a round", "first", "us a client", "x loop", "x loop, all cores", "x loop, gpu", "x Flower"]
    text = (
        f"\n**{name}**: {figures['about']}\n\n{_table([*header, 'with the first', 'x bound', 'from the loop'], rows)}"
    )
    gflop, megabytes = own_round["flop"] / 1e9, own_round["bytes"] / 1e6
    text += f"\n\nThe bound is {_seconds(least_s)} s: {gflop:.3g} GFLOP, {megabytes:.3g} MB."
    simulation = figures["sides"].get("flower", {})
    if simulation.get("loop_loss") is not None:
        text += (
            f"\n\nLoss of Flower's last model {simulation['loss']:.4f}, of the loop's {simulation['loop_loss']:.4f}."
        )
    if simulation.get("decode_s") is not None:
        text += f" Ours and the loop hold tensors; decoding them, once, takes {simulation['decode_s']:.1f} s."
    return text


def memory(figures: dict[str, Any]) -> str:
    """Return the table of resident memory."""
    rows = [
        [side, f"{own['early'] / 2**20:.0f}", f"{own['late'] / 2**20:.0f}", f"{own['growth']:.3f}"]
        for side, own in figures.items()
    ]
    at = next(iter(figures.values()))
    header = ["MiB of W2's processes", f"round {at['early_round']}", f"round {at['late_round']}", "ratio"]
    return "\n" + _table(header, rows)


def long(figures: dict[str, Any]) -> str:
    """Return the table of whole runs."""
    alone_s = next(iter(figures.values()))["round_s"]
    rows = [
        [
            run,
            *(f"{own[key] * 1e6:,.0f}" for key in ("round_s", "whole_s")),
            f"{own['whole_s'] / own['round_s'] - 1:.1%}",
            f"{own['whole_s'] / alone_s - 1:.1%}",
        ]
        for run, own in figures.items()
    ]
    header = ["10,000 rounds of W1a", "us within a round", "us a round in all", "between rounds", "more than alone"]
    return "\n" + _table(header, rows)


def cold(figures: dict[str, Any]) -> str:
    """Return the table of cold starts."""
    rows = [[side, f"{own['first_row_s']:.1f}", _times(own.get("times_flower"))] for side, own in figures.items()]
    return "\n" + _table(["default experiment", "s from typing to the first row", "x Flower"], rows)


def scale(figures: dict[str, Any]) -> str:
    """Return the table of start-ups with many clients."""
    rows = [
        [
            f"{side}, {own['num_clients']:,} clients",
            *(_seconds(own[key]) for key in ("import_s", "startup_s", "first_s", "round_s")),
            f"{own['peak'] / 2**20:.0f}",
        ]
        for side, own in figures.items()
    ]
    return "\n" + _table(["", "imports, s", "start-up, s", "first round, s", "round, s", "peak, MiB"], rows)


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
