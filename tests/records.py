"""Directories of runs that never ran, for tests of what only reads them."""

import json

from fedresearch.runs.columns import declared, evaluated
from fedresearch.runs.record import dump_record


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


def report(runs, **question):
    """Return the report of runs that answers a question with the arguments of ``pose_question``."""
    from fedresearch.study.report.build import build_report
    from fedresearch.study.report.cells import group_runs
    from fedresearch.study.report.question import pose_question

    study = group_runs(runs)
    return build_report(study, pose_question(study, **question))
