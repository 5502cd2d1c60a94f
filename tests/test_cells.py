"""Cells and replicates of a report's runs, and the selection rules."""

import json

import numpy as np
import pytest

from fedresearch.errors import InputError
from fedresearch.runs.loaded import default_metric
from fedresearch.study.report.axes import AXES
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.selection import parse_selection
from tests.records import make


def labels(folder):
    return {cell.label: list(cell.runs) for cell in group_runs(load([folder])).cells}


def test_varying_keys_make_cells_and_seeds_make_replicates(tmp_path):
    for seed in (10, 9):
        for mu in (0, 1):
            strategy = {"server": {"_target_": "FedProx", "proximal_mu": mu}}
            make(tmp_path / f"p{seed}{mu}", seed=seed, choices={"strategy": "fedprox"}, strategy=strategy)
        make(tmp_path / f"a{seed}", seed=seed)
    assert labels(tmp_path) == {
        "strategy=fedavg": ["9", "10"],
        "strategy=fedprox, proximal_mu=0": ["9", "10"],
        "strategy=fedprox, proximal_mu=1": ["9", "10"],
    }


def test_keys_of_an_option_are_not_separate_keys(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", choices={"strategy": "fedprox"}, strategy={"server": {"_target_": "FedProx", "mu": 1}})
    assert group_runs(load([tmp_path])).keys == ["strategy"]


@pytest.mark.parametrize("word", ["strategy.weighted_by=uniform", "++strategy.weighted_by=uniform", "strategy={}"])
def test_a_typed_key_counts_even_if_options_differ(tmp_path, word):
    weighted = {"server": {"_target_": "FedAvg"}, "weighted_by": "examples"}
    make(tmp_path / "a", strategy=weighted, record={"overrides": ["strategy=fedavg"]})
    make(
        tmp_path / "b",
        choices={"strategy": "fedprox"},
        strategy={**weighted, "weighted_by": "uniform", "mu": 1},
        record={"overrides": ["strategy=fedprox", word, "+strategy.mu=1"]},
    )
    expected = ["strategy"] if word == "strategy={}" else ["strategy", "strategy.weighted_by"]
    assert group_runs(load([tmp_path])).keys == expected  # mu has a single value


def test_a_typed_section_stands_for_its_keys(tmp_path):
    for name, lr in (("sgd", 0.1), ("adam", 0.001)):
        record = {"overrides": [f"optimizer={name}", f"optimizer.group={{lr:{lr}}}"]}
        optimizer = {"group": {"lr": lr}, "own": name}
        make(tmp_path / name, choices={"optimizer": name}, optimizer=optimizer, record=record)
    assert group_runs(load([tmp_path])).keys == ["optimizer", "optimizer.group.lr"]


def test_hardware_that_changes_sums_is_a_key(tmp_path):
    for chunk in (4, 8):
        make(tmp_path / str(chunk), hardware={"_target_": "batched", "chunk": chunk, "workers": chunk})
    assert group_runs(load([tmp_path])).keys == ["hardware.chunk"]


def test_the_schedule_is_separate_from_the_optimizers_option(tmp_path):
    for name in ("cosine", "step"):
        optimizer = {"lr": 0.1, "schedule": {"_target_": name}}
        make(tmp_path / name, choices={"schedule": name, "optimizer": "sgd"}, optimizer=optimizer)
    assert list(labels(tmp_path)) == ["schedule=cosine", "schedule=step"]


def test_a_key_that_always_equals_another_is_listed_separately(tmp_path):
    for value in (0.5, 1):
        make(tmp_path / str(value), dataset={"alpha": value, "beta": value})
    found = group_runs(load([tmp_path]))
    assert (found.keys, found.equal) == (["dataset.alpha"], {"dataset.beta": "dataset.alpha"})


def test_seeds_that_equal_the_runs_seed_are_not_named(tmp_path):
    for seed in (0, 1):
        make(tmp_path / str(seed), seed=seed, dataset={"seed": seed}, partitioner={"seed": 7})
    assert labels(tmp_path) == {"all runs": ["0", "1"]}
    make(tmp_path / "other", seed=0, dataset={"seed": 0}, partitioner={"seed": 8})
    assert labels(tmp_path) == {
        "all runs": ["seed=0 partitioner.seed=7", "seed=0 partitioner.seed=8", "seed=1 partitioner.seed=7"]
    }


def test_the_finished_one_of_two_runs_with_one_seed_counts(tmp_path):
    make(tmp_path / "a", status="finished", rows=[{}])
    make(tmp_path / "b", status="interrupted", rows=[{}, {}])
    found = group_runs(load([tmp_path]))
    assert [run.directory.name for run in found.cells[0].runs.values()] == ["a"]
    assert [run.directory.name for run in found.repeated] == ["b"]


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        (("interrupted", 2), ("interrupted", 1)),  # more rounds, though older
        (("finished", 1), ("diverged", 2)),
        (("diverged", 2), ("interrupted", 1)),
    ],
)
def test_the_run_with_more_rounds_counts_among_unfinished_ones(tmp_path, kept, left_out):
    for name, (status, num_rounds) in {"a": kept, "b": left_out}.items():
        make(tmp_path / name, status=status, rows=[{}] * num_rounds)
    assert [run.directory.name for run in group_runs(load([tmp_path])).repeated] == ["b"]


def test_jobs_that_never_became_runs_are_listed(tmp_path):
    make(tmp_path / "done")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "refused.txt").write_text("first\nunknown key x\n")
    jobs = [{"overrides": [], "directory": name} for name in ("done", "refused", "missing")]
    (tmp_path / "sweep.json").write_text(json.dumps(jobs))
    unread = group_runs(load([tmp_path, tmp_path / "done"])).unread
    assert {run.directory.name: (run.state, run.error) for run in unread} == {
        "refused": ("refused", "unknown key x"),
        "missing": ("missing", ""),
    }


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        load([tmp_path])
    with pytest.raises(InputError, match="nowhere does not exist"):
        load([tmp_path / "nowhere"])


ROWS = [
    {"eval/accuracy": accuracy, "clients/accuracy": validation, "eval/loss": loss, "local/steps": 10}
    for accuracy, validation, loss in [(0.5, 0.6, 3.0), (0.9, 0.7, 1.0), (None, None, None), (0.8, 0.9, 2.0)]
]


@pytest.mark.parametrize(
    ("rule", "metric", "expected"),
    [
        ("last", "eval/accuracy", 0.8),
        ("mean_last:2", "eval/accuracy", (0.9 + 0.8) / 2),
        ("mean_last:9", "eval/loss", (3 + 1 + 2) / 3),
        ("best_val", "eval/accuracy", 0.8),
        ("best_test", "eval/accuracy", 0.9),
        ("best_test", "eval/loss", 1.0),
        ("best_val", "eval/loss", np.nan),  # clients/loss is missing
        ("last", "personal/accuracy", np.nan),
    ],
)
def test_a_rule_makes_one_number_of_a_curve(tmp_path, rule, metric, expected):
    make(tmp_path / "run", rows=ROWS)
    (run,) = load([tmp_path])
    assert parse_selection(rule, metric).choose(run) == pytest.approx(expected, nan_ok=True)


def test_the_first_of_equally_good_rounds_is_selected(tmp_path):
    accuracies = [(0.1, 0.5), (0.2, 0.8), (0.3, 0.8), (0.4, 0.7)]
    rows = [{"eval/accuracy": a, "clients/accuracy": v, "eval/loss": a, "clients/loss": -v} for a, v in accuracies]
    make(tmp_path / "run", rows=rows)
    (run,) = load([tmp_path])
    assert parse_selection("best_val", "eval/accuracy").choose(run) == 0.2
    assert parse_selection("best_val", "eval/loss").choose(run) == 0.2


@pytest.mark.parametrize("rule", ["best", "mean_last", "mean_last:0", "mean_last:x", "last:3", ""])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(InputError, match="try --select"):
        parse_selection(rule, "eval/accuracy")


def test_axes_and_the_default_metric(tmp_path):
    totals = [{"comm/bytes_up_total": 5 * n, "comm/bytes_down_total": 7 * n, "time/total_s": n / 2} for n in (1, 2, 3)]
    make(tmp_path / "run", rows=[{"local/steps": n, "clients/loss": 1.0, **total} for n, total in enumerate(totals)])
    (run,) = load([tmp_path])
    found = {name: list(AXES[name].progress(run)) for name in ("rounds", "bytes", "steps", "seconds")}
    assert found == {"rounds": [1, 2, 3], "bytes": [12, 24, 36], "steps": [0, 1, 3], "seconds": [0.5, 1, 1.5]}
    assert default_metric([(run, run.columns)]) == "clients/loss"


def test_a_warning_names_a_cell_by_the_keys_that_tell_it_apart(tmp_path):
    for strategy, lr, alpha in [("fedavg", 0.1, 1), ("fedavg", 0.2, 1), ("fedavg", 0.2, 2), ("ditto", 0.3, 3)]:
        make(
            tmp_path / f"{strategy}_{lr}_{alpha}",
            choices={"strategy": strategy},
            optimizer={"lr": lr, "schedule": {}},
            partitioner={"_target_": "dirichlet", "alpha": alpha},
        )
    found = group_runs(load([tmp_path]))
    assert {found.short_label(cell) for cell in found.cells} == {
        "strategy=ditto",
        "strategy=fedavg, lr=0.1",
        "strategy=fedavg, lr=0.2, alpha=1",
        "strategy=fedavg, lr=0.2, alpha=2",
    }
