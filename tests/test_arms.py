"""Arms and panels of a report: which keys make them, and that an arm has one look."""

import math

import pytest

from fedresearch.errors import InputError
from fedresearch.study.report.arms import COLOURS, GREY, MOST_HIGHLIGHTED, arrange
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.question import pose_question
from tests.records import make


def study_of(folder, mus=(0.01, 0.1, 1.0), alphas=(0.1, 1.0)):
    for alpha in alphas:
        partitioner = {"_target_": "D", "alpha": alpha, "declares": {"label": f"Dir(α = {alpha})"}}
        common = {"partitioner": partitioner, "rows": [{"eval/accuracy": 0.5}]}
        declares = {"label": "FedAvg"}
        make(folder / f"a{alpha}", strategy={"server": {"_target_": "FedAvg"}, "declares": declares}, **common)
        for mu in mus:
            strategy = {"server": {"_target_": "FedProx", "proximal_mu": mu}}
            strategy["declares"] = {"label": f"FedProx (μ = {mu})"}
            make(folder / f"p{mu}{alpha}", choices={"strategy": "fedprox"}, strategy=strategy, **common)
    return group_runs(load([folder]))


def arranged(study, means=None, **options):
    return arrange(study, means or {cell.label: 0.0 for cell in study.cells}, larger_is_better=True, **options)


def test_strategies_are_arms_and_each_other_key_makes_panels(tmp_path):
    arrangement = arranged(study_of(tmp_path))
    assert arrangement.panels == ["Dir(α = 0.1)", "Dir(α = 1)"]
    labels = ["FedAvg", "FedProx (μ = 0.01)", "FedProx (μ = 0.1)", "FedProx (μ = 1)"]
    assert [arm.label for arm in arrangement.arms] == labels
    assert {*arrangement.places.values()} == {(panel, arm) for panel in range(2) for arm in range(4)}
    assert [arm.colour for arm in arrangement.arms] == [*COLOURS[:4]]


def test_arms_and_panels_may_be_chosen(tmp_path):
    study = study_of(tmp_path)
    by_mu = arranged(study, facet=["strategy"])
    assert [arm.label for arm in by_mu.arms] == ["Dir(α = 0.1)", "Dir(α = 1)"]
    assert len(by_mu.panels) == 4
    assert arranged(study, arms=study.keys).panels == [""]
    assert arranged(study, arms=["strategy"]).panels == ["Dir(α = 0.1)", "Dir(α = 1)"]  # its own keys go with it
    by_both = arranged(study, arms=["strategy"], facet=["strategy.server.proximal_mu"])
    assert {*by_both.panel_keys} == {"strategy.server.proximal_mu", "partitioner.alpha"}


def test_a_schedules_keys_go_with_the_schedule(tmp_path):
    for lr in (0.1, 0.2):
        for name, keys in {"constant": {}, "half": {"gamma": 0.5}, "tenth": {"gamma": 0.1}}.items():
            schedule = {"_target_": "Step" if keys else "Constant", **keys}
            make(
                tmp_path / f"{lr}{name}",
                choices={"schedule": "step" if keys else "constant"},
                optimizer={"lr": lr, "schedule": schedule},
                rows=[{"eval/accuracy": 0.5}],
            )
    study = group_runs(load([tmp_path]))
    by_schedule = arranged(study, facet=["schedule"])
    assert (by_schedule.arm_keys, len(by_schedule.panels)) == (["optimizer.lr"], 3)
    assert arranged(study).arm_keys == ["optimizer.lr"]


def test_of_many_arms_the_best_and_the_baseline_have_colours(tmp_path):
    mus = [round(0.1 * k, 1) for k in range(1, 8)]
    study = study_of(tmp_path, mus, [1.0])
    means = {cell.label: cell.keys.get("strategy.server.proximal_mu", math.nan) for cell in study.cells}
    (baseline,) = [cell.label for cell in study.cells if cell.keys["strategy"] == "fedavg"]
    arms = arranged(study, means, baseline=[baseline]).arms
    chosen = [arm.label for arm in arms if arm.is_highlighted]
    assert chosen == ["FedAvg", *(f"FedProx (μ = {mu})" for mu in mus[-MOST_HIGHLIGHTED + 1 :])]
    assert {arm.colour for arm in arms if not arm.is_highlighted} == {GREY}
    assert len({(arm.colour, arm.dash, arm.marker) for arm in arms if arm.is_highlighted}) == MOST_HIGHLIGHTED
    (only,) = [arm.label for arm in arranged(study, means, highlight=["= 0.3"]).arms if arm.is_highlighted]
    assert only == "FedProx (μ = 0.3)"


def test_arms_of_one_name_are_told_apart_by_their_keys(tmp_path):
    study = study_of(tmp_path, [], [1.0])
    strategy = {"server": {"_target_": "Other"}, "declares": {"label": "FedAvg"}}
    make(tmp_path / "b", choices={"strategy": "own"}, strategy=strategy, partitioner={"_target_": "D", "alpha": 1.0})
    study = group_runs(load([tmp_path]))
    assert [arm.label for arm in arranged(study).arms] == ["strategy=fedavg", "strategy=own"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"facet": ["alpha"], "arms": ["alpha"]}, "partitioner.alpha is in --facet and in --arms"),
        ({"facet": ["seed"]}, "seed does not vary"),
        ({"labels": ["FedAvg"]}, "--label must be KEY=TEXT, .* got FedAvg"),
    ],
)
def test_what_cannot_be_arranged_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        pose_question(study_of(tmp_path), **options)


def test_labels_may_be_typed(tmp_path):
    study = study_of(tmp_path)
    question = pose_question(study, labels=["strategy=fedavg=Ours", "alpha=a", "eval/accuracy=Accuracy"])
    assert question.names == {"strategy=fedavg": "Ours", "partitioner.alpha": "a", "eval/accuracy": "Accuracy"}
    assert arranged(study, names=question.names).arms[0].label == "Ours"
