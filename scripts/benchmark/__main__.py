"""The command ``python -m scripts.benchmark``: time us against a bare PyTorch loop and other frameworks, in one run.

All sides do the same arithmetic on the same data and, but for Flower, which draws its own, on the same cohorts and
batches. Rounds alternate between the sides; Flower's simulations, each in a process of its own, stand in between.

  cpu, workers, batched   whole rounds of ours: messages, metrics, hash of the model
  loop                    a bare PyTorch loop with its weighted average, on one thread; where a model has convolutions
                          also on as many threads as there are cores
  gpu, batched-gpu        our rounds on a GPU, where asked for, beside the loop there (alone with --peers loop-gpu)
  flower                  flwr.simulation.run_simulation on Ray, one CPU a client
  pfl, fedjax, blazefl    where --peers-env has installed them: on our cohorts and batches, on one core and on all
  local, local loop       the cohort's local training alone, ours and the loop's
  memory                  resident memory of W2's processes at round 100 and round 1,000
  cold                    seconds from typing the command to the first round's row
  scale                   start-up and peak memory with 1,000,000 clients
  long                    what a whole run's files and trackers cost in 10,000 of W1a's rounds
"""

import argparse
import json
import signal
import sys
from pathlib import Path


def main() -> int:
    from fedresearch.federation import flower
    from scripts.benchmark import environment, processes, report
    from scripts.benchmark.measure import Options, measure
    from scripts.benchmark.ours import HARDWARE
    from scripts.benchmark.workloads import PEERS, WORKLOADS

    names = [name for name in WORKLOADS if name != "cold"]
    groups = sorted({name.partition("-")[0] for name in names} - set(names))
    others = ["memory", "cold", "scale", "long"]
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=[*names, *groups, *others], metavar="W", help="default: all")
    parser.add_argument("--hardware", nargs="+", choices=[*HARDWARE, "ray"], help="default: what makes sense of each")
    choices = ["loop", "loop-gpu", "flower", *PEERS]
    parser.add_argument(
        "--peers", nargs="*", choices=choices, metavar="P", help="default: loop, flower, what is installed"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds of each side, at most so many of Flower's")
    parser.add_argument("--seconds", type=float, help="no further round of a workload starts after so many")
    parser.add_argument("--device", default="cuda", help="of gpu, batched-gpu and the loop beside them")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--smoke", action="store_true", help="only try whether it runs: W1a, cpu and loop, two rounds")
    parser.add_argument(
        "--peers-env",
        nargs="?",
        const=sys.executable,
        metavar="PYTHON",
        help="only install pfl, FedJAX and, from Python 3.12, BlazeFL in an environment of their own",
    )
    arguments = parser.parse_args()
    if arguments.peers_env:
        environment.make(arguments.peers_env)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders are removed, and processes ended
    if arguments.peers is None:
        arguments.peers = ["loop", "flower", *environment.versions()]
    if missing := {*arguments.peers} & {*PEERS} - environment.versions().keys():
        parser.error(f"not installed: {', '.join(sorted(missing))}; try --peers-env")
    if arguments.smoke:
        arguments.workloads, arguments.hardware, arguments.peers, arguments.rounds = ["W1a"], ["cpu"], ["loop"], 2
    flower.quieten()

    machine = report.machine()
    figures: dict[str, object] = {"machine": machine, "workloads": {}}
    wanted = arguments.workloads or [*names, *others]
    # W6's sizes take turns with each other, as what they are compared with.
    pending = [[name for name in names if name in (item, *_members(item, names))] for item in wanted]
    together = [name for group in pending for name in group if name.startswith("W6")]
    runs = [group for group in pending if group and not group[0].startswith("W6")]
    runs = [[name] for group in runs for name in group] + ([together] if together else [])
    hardware = [option for option in arguments.hardware or () if option in HARDWARE] or None
    options = Options(hardware, arguments.peers, arguments.rounds, arguments.device, arguments.seconds)
    same = True

    def keep(key: str, value: object, text: str) -> None:
        figures[key] = value
        print(text, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")

    print(report.head(machine), flush=True)
    for run in runs:
        measured = measure(run, options)
        text = "\n".join(report.rounds(name, own, machine) for name, own in measured.items())
        keep("workloads", {**figures["workloads"], **measured}, text)  # type: ignore[dict-item]
        same &= all(own.get("same_work") is not False for one in measured.values() for own in one["sides"].values())
    hardware = hardware or ["cpu", "workers", "batched"]
    if "scale" in wanted:
        keep("scale", got := processes.scale(hardware), report.scale(got))
    if "memory" in wanted:
        keep("memory", got := processes.memory(hardware), report.memory(got))
    if "long" in wanted:
        keep("long", got := processes.long(), report.long(got))
    if "cold" in wanted:
        cold = arguments.hardware or ["cpu", "workers", "ray"]
        keep("cold", got := processes.cold(cold, arguments.peers), report.cold(got))
    if not same:
        print("a side did not do the loop's work: see the last column", file=sys.stderr)
    return 0 if same else 1


def _members(group: str, names: list[str]) -> list[str]:
    return [name for name in names if name.partition("-")[0] == group]


if __name__ == "__main__":
    sys.exit(main())
