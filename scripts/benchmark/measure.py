"""Rounds of every side, in turn, so that a drift of the machine's speed hits all alike."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from fedresearch.hardware.cores import num_cores
from scripts.benchmark import environment
from scripts.benchmark.bound import round_work
from scripts.benchmark.ours import Ours, OursLocal, is_rounded, on_gpu
from scripts.benchmark.peers import Loop, Peer, flower, loss, write_job
from scripts.benchmark.workloads import WORKLOADS, Workload, data_of, initial_state

# How far our last model may be from the loop's, as a share of how far that one went from the initial weights. Both draw
# the same cohorts and batches; what is left is the order in which float32 sums are formed, which training amplifies.
TOLERANCE = 0.02
LOOP_GPU = "loop, gpu"
# Adam divides by the gradient's size, so that a rounding error becomes a step: there the distance says nothing.


@dataclass(frozen=True)
class Options:
    """What is asked for; None: what each workload says.

    Attributes
    ----------
    hardware : sequence of str or None
        Ours.
    peers : sequence of str
        Of ``"loop"``, ``"loop-gpu"``, ``"flower"`` and the other frameworks that are installed.
    rounds : int or None
        Timed rounds of each side, at most so many of Flower's.
    gpu : str
        The device of what is timed on a GPU.
    seconds : float or None
        After so many, no further round starts once two are timed.
    """

    hardware: Sequence[str] | None
    peers: Sequence[str]
    rounds: int | None
    gpu: str
    seconds: float | None = None


def measure(names: Sequence[str], options: Options) -> dict[str, Any]:
    """Return the figures of workloads whose rounds alternate: seconds, ratios, and whether all did the same work."""
    works = {name: WORKLOADS[name] for name in names}
    rounds = options.rounds or max(work.rounds for work in works.values())
    simulations = _simulations(works, options, rounds)
    flowers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {
            (name, side): stack.enter_context(runner)
            for name, work in works.items()
            for side, runner in {
                **_sides(work, data_of(name), options),
                **_others(work, data_of(name), options, folder / name, rounds),
            }.items()
        }
        times: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
        peaks = dict.fromkeys(sides, 0)
        begun = time.perf_counter()
        for server_round in range(1, rounds + 2):  # the first is a warm-up
            if options.seconds and server_round > 3 and time.perf_counter() - begun > options.seconds:
                break
            for key in list(sides)[:: 1 if server_round % 2 else -1]:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
                sides[key].round(server_round)
                if torch.accelerator.is_available():
                    torch.accelerator.synchronize()
                times[key].append(time.perf_counter() - started)
                if torch.cuda.is_available():
                    peaks[key] = max(peaks[key], torch.cuda.max_memory_allocated())
            for name, work in works.items():
                if (name, "loop") in sides and server_round == _flower_rounds(work, rounds) + 1:
                    losses[name] = loss(work, data_of(name), sides[name, "loop"].state())
            for name, after, num_rounds in simulations:
                if after == server_round:
                    flowers[name].append(flower(name, num_rounds))
        states = {key: runner.state() for key, runner in sides.items()}
    measured: dict[str, Any] = {
        name: {
            "about": work.about,
            "cohort": work.cohort,
            "round": round_work(work, data_of(name), rounds),
            "sides": _figures(
                work,
                data_of(name),
                {side: seconds for (of, side), seconds in times.items() if of == name},
                {side: state for (of, side), state in states.items() if of == name},
                flowers[name],
                losses.get(name),
            ),
        }
        for name, work in works.items()
    }
    for (name, side), peak in peaks.items():
        if peak:  # what the other sides hold between their rounds included
            measured[name]["sides"][side]["peak_gpu_bytes"] = peak
    return measured


def _flower_rounds(work: Workload, rounds: int) -> int:
    return min(work.flower_rounds, rounds)


def _simulations(works: dict[str, Workload], options: Options, rounds: int) -> list[tuple[str, int, int]]:
    """Return Flower's simulations: of which workload, after which of our rounds, and of how many rounds."""
    return [
        (name, 1 + rounds * (block + 1) // (work.flower_blocks + 1), _flower_rounds(work, rounds))
        for name, work in works.items()
        if "flower" in options.peers and work.flower_rounds
        for block in range(work.flower_blocks)
    ]


def _sides(work: Workload, data: Any, options: Options) -> dict[str, Any]:
    sides: dict[str, Any] = {
        hardware: Ours(work, data, hardware, options.gpu) for hardware in options.hardware or work.hardware
    }
    if "loop" in options.peers:
        sides["loop"] = Loop(work, data)
        if work.threaded and num_cores() > 1:
            sides["loop, all cores"] = Loop(work, data, threads=num_cores())
        if work.cohort <= 10 and not work.evaluates:
            sides["local"] = OursLocal(work, data)
            sides["local loop"] = Loop(work, data, averages=False)
    if "loop-gpu" in options.peers or ("loop" in options.peers and any(map(on_gpu, sides))):
        sides[LOOP_GPU] = Loop(work, data, device=options.gpu)
    return sides


def _others(work: Workload, data: Any, options: Options, folder: Path, rounds: int) -> dict[str, Any]:
    """Start the other frameworks, each on one core and on all."""
    names = [name for name in work.peers if name in options.peers and name in environment.versions()]
    if names:
        folder.mkdir()
        write_job(folder / "job.pt", work, data, rounds + 1)
    return {
        name if cores == 1 else f"{name}, all cores": Peer(name, folder / "job.pt", cores)
        for name in names
        for cores in sorted({1, num_cores()})
    }


def _figures(
    work: Workload,
    data: Any,
    times: dict[str, list[float]],
    states: dict[str, dict[str, Tensor]],
    flowers: list[dict[str, Any]],
    loop_loss: float | None,
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    flower_s = None
    if flowers:
        rounds_s = [seconds for simulation in flowers for seconds in simulation["rounds_s"]]
        flower_s = statistics.median(rounds_s)
        figures["flower"] = {
            "round_s": flower_s,
            "first_s": flowers[0]["first_s"],
            "startup_s": flowers[0]["startup_s"],
            "rounds_s": rounds_s,
            "loss": flowers[0]["loss"],
            "loop_loss": loop_loss,  # after as many rounds, with other draws
            "decode_s": flowers[0].get("decode_s"),
        }
    initial = initial_state(work)
    for side, (first_s, *rounds_s) in times.items():
        figures[side] = own = {"round_s": statistics.median(rounds_s), "first_s": first_s, "rounds_s": rounds_s}
        peers = ("local loop",) if side == "local" else ("loop", "loop, all cores", LOOP_GPU)
        for peer in peers:
            if peer in times and side not in ("loop", "local loop", peer):
                own[f"times_{peer}"] = statistics.median(
                    theirs / ours for theirs, ours in zip(times[peer][1:], rounds_s, strict=True)
                )
        if flower_s is not None and not side.startswith("local"):
            own["times_flower"] = flower_s / own["round_s"]
            num_rounds = 1 + len(flowers[0]["rounds_s"])
            if num_rounds <= len(times[side]):
                own["times_flower_with_first"] = flowers[0]["strategy_s"] / sum(times[side][:num_rounds])
        reference = next((peer for peer in peers if peer in states), side)
        if side not in (reference, "local loop"):
            theirs = states[reference]
            own["distance"] = _norm(states[side], theirs) / _norm(theirs, initial)
            says = work.optimizer is not Adam and not is_rounded(side)
            own["same_work"] = own["distance"] <= TOLERANCE if says else None
    return figures


def _norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.sqrt(sum(((a[name].double() - b[name].double()) ** 2).sum() for name in b)))
