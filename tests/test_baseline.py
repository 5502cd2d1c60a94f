"""The cell that each cell is compared with: equal in all keys except the named one."""

import re

import pytest

from fedresearch.errors import InputError
from fedresearch.study.report.baseline import find_baseline
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from tests.records import make


def cell(folder, strategy, alpha, /, **sections):
    """Write a run of a strategy on Dirichlet partitions."""
    directory = folder / f"{strategy}_{alpha}_{len([*folder.iterdir()])}"
    partitioner = {"_target_": "dirichlet", "alpha": alpha}
    make(directory, choices={"strategy": strategy, "partitioner": "dirichlet"}, partitioner=partitioner, **sections)


def prox(mu):
    return {"server": {"_target_": "FedProx", "proximal_mu": mu}}


def matched(folder, text, *tuned):
    """Return a mapping of labels to their baselines' labels, and the warnings."""
    found = find_baseline(group_runs(load([folder])), text, tuned)
    return {label: cell.label for label, cell in found.partners.items()}, found.warnings


def test_a_cell_is_compared_with_the_one_that_has_the_same_other_values(tmp_path):
    for alpha in (0.1, 1.0):
        cell(tmp_path, "fedavg", alpha)
        for mu in (0.5, 2):
            cell(tmp_path, "fedprox", alpha, strategy=prox(mu))
    expected = {
        f"strategy=fedprox, alpha={alpha}, proximal_mu={mu}": f"strategy=fedavg, alpha={alpha}"
        for mu in (0.5, 2)
        for alpha in (0.1, 1.0)
    }
    assert matched(tmp_path, "strategy=fedavg") == (expected, [])


def test_any_key_may_be_the_baseline_and_then_options_keys_count(tmp_path):
    cell(tmp_path, "fedavg", 0.1)
    cell(tmp_path, "fedavg", 1.0)
    for mu in (0.5, 2):
        cell(tmp_path, "fedprox", 1.0, strategy=prox(mu))
    found, (first, second) = matched(tmp_path, "partitioner.alpha=0.1")
    assert found["strategy=fedavg, alpha=1.0"] == "strategy=fedavg, alpha=0.1"
    ending = "also differs from its baseline in strategy, strategy.server.proximal_mu"
    assert first == f"strategy=fedprox, proximal_mu=0.5 {ending}"
    assert second == f"strategy=fedprox, proximal_mu=2 {ending}"


def test_a_schedules_keys_do_not_belong_to_the_optimizer(tmp_path):
    for schedule, steps in (("constant", None), ("step", 5), ("step", 9)):
        optimizer = {"lr": 0.1, "schedule": {"_target_": schedule} | ({"steps": steps} if steps else {})}
        for name in ("sgd", "adam"):
            choices = {"schedule": schedule, "optimizer": name}
            make(tmp_path / f"{schedule}{steps}{name}", choices=choices, optimizer=optimizer)
    found, warnings = matched(tmp_path, "schedule=constant")
    assert found == {
        f"schedule=step, optimizer={name}, steps={steps}": f"schedule=constant, optimizer={name}"
        for name in ("sgd", "adam")
        for steps in (5, 9)
    }
    assert warnings == []
    found, warnings = matched(tmp_path, "optimizer=sgd")
    assert found == {
        f"schedule={schedule}, optimizer=adam{steps}": f"schedule={schedule}, optimizer=sgd{steps}"
        for schedule, steps in (("constant", ""), ("step", ", steps=5"), ("step", ", steps=9"))
    }
    assert warnings == []


def test_a_key_of_both_options_is_reported_where_it_differs(tmp_path):
    for strategy, weighted, sections in (("fedavg", "examples", {}), ("fedprox", "uniform", {"mu": 1})):
        record = {"overrides": [f"strategy={strategy}", f"strategy.weighted_by={weighted}"]}
        cell(tmp_path, strategy, 0.1, strategy={"weighted_by": weighted, **sections}, record=record)
    label, only = "strategy=fedprox, weighted_by=uniform", "strategy=fedavg, weighted_by=examples"
    warning = "strategy=fedprox also differs from its baseline in strategy.weighted_by"
    assert matched(tmp_path, "strategy=fedavg") == ({label: only}, [warning])
    assert matched(tmp_path, "strategy=fedavg", "strategy.weighted_by") == ({label: only}, [])


def test_tuned_keys_may_differ(tmp_path):
    for strategy, alpha, lr in [("fedavg", 0.1, 0.01), ("fedavg", 1.0, 0.1), ("scaffold", 0.1, 1.0)]:
        cell(tmp_path, strategy, alpha, optimizer={"lr": lr, "schedule": {}})
    label = "strategy=scaffold, lr=1.0, alpha=0.1"
    assert matched(tmp_path, "strategy=fedavg", "optimizer.lr") == ({label: "strategy=fedavg, lr=0.01, alpha=0.1"}, [])
    # Otherwise neither of two candidates matches.
    assert matched(tmp_path, "strategy=fedavg") == (
        {},
        ["strategy=scaffold has no baseline: no cell has strategy=fedavg and the same other values"],
    )


def test_the_only_candidate_is_taken_with_a_warning(tmp_path):
    cell(tmp_path, "fedavg", 0.1, federation={"fraction_train": 1.0, "num_rounds": 1})
    cell(tmp_path, "scaffold", 1.0, federation={"fraction_train": 0.5, "num_rounds": 1})
    cell(tmp_path, "fedprox", 0.1, federation={"fraction_train": 0.5, "num_rounds": 1})
    found, warnings = matched(tmp_path, "strategy=fedavg")
    only = "strategy=fedavg, alpha=0.1, fraction_train=1.0"
    scaffold, fedprox = (
        "strategy=scaffold, alpha=1.0, fraction_train=0.5",
        "strategy=fedprox, alpha=0.1, fraction_train=0.5",
    )
    assert found == {scaffold: only, fedprox: only}
    assert sorted(warnings) == [
        "strategy=fedprox also differs from its baseline in federation.fraction_train",
        "strategy=scaffold also differs from its baseline in partitioner.alpha, federation.fraction_train",
    ]


def test_several_matching_candidates_give_no_baseline(tmp_path):
    for mu in (1, 2):
        cell(tmp_path, "fedprox", 0.1, strategy=prox(mu))
    cell(tmp_path, "fedavg", 0.1)
    warning = "strategy=fedavg has no baseline: several cells have strategy=fedprox and the same other values"
    assert matched(tmp_path, "strategy=fedprox") == ({}, [warning])


@pytest.mark.parametrize(
    ("text", "tuned", "message"),
    [
        (
            "local.epochs=1",
            [],
            "local.epochs does not vary among these runs; varying keys: strategy, partitioner.alpha",
        ),
        ("strategy=fedprox", [], "no run has strategy=fedprox; try --baseline strategy=fedavg or scaffold"),
        (
            "partitioner.alpha",
            [],
            "--baseline must be KEY=VALUE, got partitioner.alpha; try --baseline partitioner.alpha=0.1",
        ),
        (
            "model.width=1",
            [],
            "model.width equals partitioner.alpha in every run; use partitioner.alpha",
        ),
    ],
)
def test_an_impossible_baseline_is_refused(tmp_path, text, tuned, message):
    for strategy in ("fedavg", "scaffold"):
        for alpha in (0.1, 1.0):
            cell(tmp_path, strategy, alpha, model={"width": alpha})
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        matched(tmp_path, text, *tuned)


def test_a_baseline_needs_a_varying_key(tmp_path):
    make(tmp_path / "run")
    with pytest.raises(
        InputError, match="no other key does; sweep it first, as with fedresearch -m strategy=VALUE,VALUE"
    ):
        matched(tmp_path, "strategy=fedavg")
