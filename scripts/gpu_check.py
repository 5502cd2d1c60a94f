"""The command ``python -m scripts.gpu_check``: whether a GPU gives the CPU's numbers, and how fast it is.

It needs no network. Small experiments on bundled data run on the CPU and, twice, on the GPU, with ``hardware=gpu`` and
``hardware=batched``. What is checked:

  equal    every column but ``time/``, and the final model, differ from the CPU's by the stated tolerance at most
  repeat   the second run on the GPU has the bits of the first
  rounded  with precision=bf16 and precision=tf32, the final model differs from that of precision=full on the same
           hardware, by the stated share of its norm at most
  resume   a run that was resumed has the bits of one that was not
  sweep    two seeds with ``-m`` finish

Before, ``python -m scripts.benchmark`` times the GPU beside a bare PyTorch loop on it; each workload has a time of its
own. What does not fit in ``--seconds`` is left out and listed. The figures are printed as JSON at the end. Exit code: 1
if anything differs or fails.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEP_S = 150.0  # no command of a check takes longer
# Of numbers above 1, relative. Training amplifies the rounding of float32.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
SMALL = ["federation.num_rounds=4", "local.epochs=2", "checkpoint.every=1", "tracker=none"]
SMALL += ["metrics=[accuracy,macro_f1,per_class,auc]"]
SETTINGS = [
    ("mlp", "fedavg", "float64"),
    ("mlp", "scaffold", "float64"),
    ("mlp", "fedprox", "float64"),
    ("cnn_mcmahan", "fedavg", "float64"),
    ("cnn_mcmahan", "scaffold", "float32"),
    ("mlp", "fedavg", "float32"),
    ("mlp", "fedavg", "float64", "adam"),
]
# The share of the model's norm, for precisions below float32, and the settings with which they are tried.
ROUNDED = {"bf16": 0.05, "tf32": 0.005}
ROUNDED_SETTINGS = [setting for setting in SETTINGS if setting[2] == "float32"]
RESUMED = SETTINGS[1]  # its clients keep arrays
# Workload, our sides, and the seconds after which no further round of it starts, and after which it ends.
BENCHMARKS = [
    ("W2", ["gpu", "batched-gpu"], 8, 50),
    ("W1b", ["batched-gpu"], 12, 70),
    ("W3", ["gpu", "batched-gpu-uncompiled"], 8, 80),
    ("W4", ["gpu", "batched-gpu-uncompiled"], 5, 50),
    ("W7", ["gpu", "batched-gpu-uncompiled"], 5, 60),
    ("W7", ["gpu-bf16", "gpu-tf32", "batched-gpu-uncompiled-bf16", "batched-gpu-uncompiled-tf32"], 5, 60),
]


def run_module(end: float, *arguments: str, step_s: float = STEP_S) -> None:
    """Run a module in a process of its own, until a moment of ``time.monotonic`` at most.

    Raises
    ------
    RuntimeError
        If it fails or takes too long, with the end of what it printed.
    """
    limit = min(step_s, end - time.monotonic())
    if limit <= 0:
        raise RuntimeError("no time is left; try a larger --seconds")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            how = f"ended with exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            how = f"took longer than {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            log.seek(0)
            printed = log.read()[-3000:]
            last = (printed.strip() or "nothing printed").splitlines()[-1]
            raise RuntimeError(f"{how}: {last}\n{' '.join(arguments)}\n{printed}")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return a run's rows without their times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def rows_difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Return the largest difference of two runs' rows and its column; the model's hash does not count.

    It is infinite where one run has a row, a column or a number and the other has not.
    """
    if len(ours) != len(theirs):
        return math.inf, "number of rows"
    found = [(0.0, "")]
    for a, b in zip(ours, theirs, strict=True):
        for name in (a.keys() | b.keys()) - {"model/sha256"}:
            x, y = a.get(name), b.get(name)
            numbers = isinstance(x, int | float) and isinstance(y, int | float)
            if x != y:
                found.append((_finite(abs(x - y) / max(1.0, abs(y))) if numbers else math.inf, name))
    return max(found)


def model_difference(ours: Path, theirs: Path) -> float:
    """Return the largest difference of two runs' final models."""
    import numpy as np
    from safetensors.numpy import load_file

    a, b = (load_file(run / "model.safetensors") for run in (ours, theirs))
    if a.keys() != b.keys():
        return math.inf
    return max(_finite(float(np.abs(a[name] - b[name]).max(initial=0))) for name in a)


def model_distance(ours: Path, theirs: Path) -> float:
    """Return the norm of the difference of two runs' final models, as a share of the norm of the second."""
    import numpy as np
    from safetensors.numpy import load_file

    a, b = (load_file(run / "model.safetensors") for run in (ours, theirs))
    square = sum(np.square(a[name] - array, dtype=np.float64).sum() for name, array in b.items())
    return _finite(math.sqrt(square / sum(np.square(array, dtype=np.float64).sum() for array in b.values())))


def _finite(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference


def _report(what: str, judge: Callable[..., tuple[bool, str]], *arguments: Any) -> bool:
    """Print a check's line; one that fails ends no other."""
    try:
        good, found = judge(*arguments)
        print(f"| {what} | {found} | {'ok' if good else 'DIFFERS'} |", flush=True)
    except Exception as error:
        good = False
        print(f"| {what} | {str(error).splitlines()[0]} | FAILED |", flush=True)
        print(f"{what}: {error}", file=sys.stderr, flush=True)
    return good


def check(end: float, device: str, folder: Path, jobs: int) -> bool:
    """Run the small experiments, several at a time, print what is found, and return whether all is well."""
    on_device = {option: [f"hardware={option}", f"hardware.device={device}"] for option in ("gpu", "batched")}
    pool = ThreadPoolExecutor(jobs)

    def run(name: str, *overrides: str, kind: str = "run", then: Sequence[str] = ()) -> Path:
        where = folder / name
        run_module(end, "fedresearch.main", *SMALL, *overrides, f"hydra.{kind}.dir={where}")
        if then:
            run_module(end, "fedresearch.main", f"resume={where}", *then)
        return where

    def options(setting: tuple[str, ...]) -> list[str]:
        names = ("model", "strategy", "dtype", "optimizer")
        return [f"{key}={value}" for key, value in zip(names, setting, strict=False)]

    runs: dict[tuple[Any, ...], Future[Path]] = {}
    for setting in SETTINGS:
        name = "-".join(setting)
        runs[setting, "cpu"] = pool.submit(run, f"{name}-cpu", *options(setting), "hardware=cpu")
        for option, where in on_device.items():
            for repeat in ("first", "second"):
                runs[setting, option, repeat] = pool.submit(run, f"{name}-{option}-{repeat}", *options(setting), *where)
    precisions = [each for each in ROUNDED if each != "tf32" or device != "cpu"]
    rounded = {
        (setting, option, precision): pool.submit(
            run, f"{'-'.join(setting)}-{option}-{precision}", *options(setting), *where, f"precision={precision}"
        )
        for setting in ROUNDED_SETTINGS
        for option, where in on_device.items()
        for precision in precisions
    }
    half, whole = ["federation.num_rounds=2"], ["federation.num_rounds=4"]
    resumed = pool.submit(run, "resumed", *options(RESUMED), *on_device["gpu"], *half, then=whole)
    sweep = pool.submit(run, "sweep", "-m", *on_device["gpu"], "seed=0,1", kind="sweep")

    def equal(setting: tuple[str, ...], option: str) -> tuple[bool, str]:
        cpu, gpu = runs[setting, "cpu"].result(), runs[setting, option, "first"].result()
        (rows, column), model = rows_difference(rows_of(gpu), rows_of(cpu)), model_difference(gpu, cpu)
        limit = TOLERANCE[setting[2]]
        return max(rows, model) <= limit, f"{column or 'rows'} {rows:.0e}, model {model:.0e}; tolerance {limit:.0e}"

    def near(setting: tuple[str, ...], option: str, precision: str) -> tuple[bool, str]:
        full = runs[setting, option, "first"].result()
        found, limit = model_distance(rounded[setting, option, precision].result(), full), ROUNDED[precision]
        return 0 < found <= limit, f"{found:.0e} of the model; at most {limit:.0e}, and not 0"

    def same(one: Future[Path], other: Future[Path]) -> tuple[bool, str]:
        a, b = rows_of(one.result()), rows_of(other.result())
        unequal = [i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]]
        return not unequal, f"rounds {unequal} differ" if unequal else f"model/sha256 {a[-1]['model/sha256'][:12]}"

    def finished() -> tuple[bool, str]:
        states = [json.loads(record.read_text())["status"] for record in sweep.result().glob("*/run.json")]
        return states == ["finished"] * 2, f"jobs: {', '.join(states)}"

    print("| check | found | |\n|---|---|---|", flush=True)
    good = True
    for setting in SETTINGS:
        for option in on_device:
            name = " ".join([*setting, option])
            good &= _report(f"equal: {name}", equal, setting, option)
            pair = (runs[setting, option, repeat] for repeat in ("first", "second"))
            good &= _report(f"repeat: {name}", same, *pair)
    for setting, option, precision in rounded:
        good &= _report(f"rounded: {' '.join([*setting, option, precision])}", near, setting, option, precision)
    good &= _report(f"resume: {' '.join(RESUMED)} gpu", same, resumed, runs[RESUMED, "gpu", "first"])
    good &= _report("sweep: two seeds, gpu", finished)
    pool.shutdown()
    return good


def benchmark(end: float, device: str, folder: Path, figures: dict[str, Any]) -> bool:
    """Time the workloads one after another, print one table, add the figures, and return whether all did one work."""
    print("\n| workload | side | s a round | first | x loop, gpu | peak, MiB | from the loop |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    good = True
    for number, (name, sides, seconds, limit) in enumerate(BENCHMARKS):
        out = folder / f"{number}.json"
        options = ["--workloads", name, "--hardware", *sides, "--seconds", str(seconds), "--device", device]
        try:
            run_module(end, "scripts.benchmark", *options, "--peers", "loop-gpu", "--json", str(out), step_s=limit)
        except RuntimeError as error:  # also where a side did other work, which the table then says
            good = False
            print(error, file=sys.stderr, flush=True)
        if not out.exists():
            print(f"| {name} | {', '.join(sides)}: FAILED | | | | | |", flush=True)
            continue
        found = json.loads(out.read_text())["workloads"][name]
        figures[f"{name}, {' and '.join(sides)}"] = found
        for side, own in found["sides"].items():
            times = f"{own['times_loop, gpu']:.2f}" if "times_loop, gpu" in own else ""
            far = f"{own['distance']:.0e}{' TOO FAR' * (own['same_work'] is False)}" if "distance" in own else ""
            peak = f"{own.get('peak_gpu_bytes', 0) / 2**20:.0f}"
            row = [name, side, f"{own['round_s']:.3g}", f"{own['first_s']:.3g}", times, peak, far]
            print(f"| {' | '.join(row)} |", flush=True)
    return good


def main() -> int:
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=found and found.type, help="cuda, cpu, ...; default: what torch finds")
    parser.add_argument("--seconds", type=float, default=530, help="for all; default: %(default)s")
    parser.add_argument("--jobs", type=int, help="experiments at a time; default: half of the cores")
    parser.add_argument("--only", choices=["check", "benchmark"], help="default: both")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs in a new folder")
    arguments = parser.parse_args()
    if not arguments.device:
        print("torch finds no GPU; to try this command without one: --device cpu", file=sys.stderr)
        return 1
    started, device, cores = time.monotonic(), torch.device(arguments.device), os.cpu_count() or 1
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{card}, {cores} cores; torch {torch.__version__}, flwr {version('flwr')}\n", flush=True)
    end, good = started + arguments.seconds, True
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "flwr": version("flwr")}
    figures: dict[str, Any] = {"card": card, "cores": cores, **versions, "workloads": {}}
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    with contextlib.nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as folder:
        if arguments.only != "check":
            good &= benchmark(end, arguments.device, Path(folder).resolve(), figures["workloads"])
        if arguments.only != "benchmark":
            good &= check(end, arguments.device, Path(folder).resolve(), arguments.jobs or max(1, cores // 2))
    print(json.dumps(figures), flush=True)
    print(f"\n{'all ok' if good else 'not all is ok: see above'}; {time.monotonic() - started:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
