"""Directories of runs that never ran, for tests of what only reads them."""

import json

from fedresearch.runs.columns import declared, evaluated
from fedresearch.runs.record import dump_record

HOSTILE = [
    "50% & $x_1$ #~^\\{}",
    "± × † ‡ § – − ≥ ≤ …",
    "<a> | [1, *2] \"b\" 'c'",
    "[1, 2]",
    "*",
    "αμ-Größe",
    "-0.5",
    "1e-05",
]


def make(directory, *, seed=0, status="finished", choices=None, rows=(), record=None, **sections):
    """Write the directory of a run that never ran; ``record`` holds further fields of its record."""
    config = {
        "seed": seed,
        "hardware": {"_target_": "cpu"},
        "tracker": {"mode": f"{directory.name}"},
        "optimizer": {"lr": 0.1, "schedule": {"_target_": "constant"}},
        "partitioner": {"_target_": "iid", "seed": None},
        "strategy": {"server": {"_target_": "FedAvg"}},
        **sections,
    }
    options = {"strategy": "fedavg", "partitioner": "iid", "experiment": directory.name, **(choices or {})}
    directory.mkdir(parents=True)
    known = {"status": status, "config": config, "choices": options, "started": directory.name, "error": None}
    known["columns"] = declared(evaluated("accuracy", {"direction": "up", "unit": "share, 0 to 1"}))
    (directory / "run.json").write_text(dump_record({**known, **(record or {})}))
    lines = [json.dumps({"round": number, **row}) + "\n" for number, row in enumerate(rows, start=1)]
    (directory / "metrics.jsonl").write_text("".join(lines))


def rows(*accuracies):
    return [
        {"eval/accuracy": accuracy, "clients/accuracy": accuracy, "local/steps": 3, "time/total_s": number / 2}
        | {"comm/bytes_up_total": number * 1000, "comm/bytes_down_total": number * 1000}
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def messy(folder):
    """Write a sweep with finished cells and with runs that are not finished."""
    sections = {"federation": {"num_rounds": 8}}
    for alpha in (0.1, 1.0):
        more = {**sections, "partitioner": {"_target_": "dirichlet", "alpha": alpha}}
        for seed in (0, 1):
            for strategy, gain in (("fedavg", 0.0), ("scaffold", 0.1)):
                name, choices = f"{strategy}{alpha}{seed}", {"strategy": strategy}
                accuracies = (0.1, None, 0.5 + gain, 0.7 + alpha / 10 + seed / 100 + gain * (1 + seed))
                record = {"git": {"fedresearch": {"commit": strategy[0] * 40, "diff_sha256": None}}}
                make(folder / name, seed=seed, choices=choices, rows=rows(*accuracies), record=record, **more)
            choices = {"strategy": "fedprox"}
            states = {(0.1, 0): "finished", (0.1, 1): "diverged", (1.0, 0): "failed", (1.0, 1): "interrupted"}
            status = states[alpha, seed]
            curves = {"finished": rows(0.2, 0.3, 0.6), "diverged": rows(0.2, 0.1)}
            prox = {"server": {"_target_": "FedProx", "proximal_mu": HOSTILE[0] if alpha < 1 else 1}}
            directory, record = folder / f"fedprox{alpha}{seed}", {"error": "boom"}
            make(
                directory,
                seed=seed,
                choices=choices,
                status=status,
                rows=curves.get(status, []),
                record=record,
                strategy=prox,
                **more,
            )
    make(folder / "again", choices={"strategy": "scaffold"}, rows=[], status="running", **more)
    (folder / "refused").mkdir()
    (folder / "refused" / "refused.txt").write_text("model=x does not exist")


def report(runs, **question):
    """Return the report of runs that answers a question with the arguments of ``pose_question``."""
    from fedresearch.study.report.build import build_report
    from fedresearch.study.report.cells import group_runs
    from fedresearch.study.report.question import pose_question

    study = group_runs(runs)
    return build_report(study, pose_question(study, **question))
