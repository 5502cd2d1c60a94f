"""The table of what a target takes: by hand, along each axis, and for runs that never reach it."""

import pytest

from fedresearch.study.report.arms import arrange
from fedresearch.study.report.baseline import NO_BASELINE, find_baseline
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.question import Question
from fedresearch.study.report.selection import parse_selection
from fedresearch.study.report.targets import SIGNS, durations_to, target_table
from tests.records import make


def cell(folder, chosen, curves, *, metric="eval/accuracy", statuses=(), num_rounds=40):
    """Write a run of a strategy for each curve; a round takes 3 steps, 1000 bytes each way and half a second."""
    for seed, values in enumerate(curves):
        rows = [
            {metric: value, "local/steps": 3, "time/total_s": number / 2}
            | {"comm/bytes_up_total": number * 1000, "comm/bytes_down_total": number * 1000}
            for number, value in enumerate(values, start=1)
        ]
        status = dict(enumerate(statuses)).get(seed, "finished")
        sections = {"choices": {"strategy": chosen}, "federation": {"num_rounds": num_rounds}}
        make(folder / f"{chosen}{seed}", seed=seed, rows=rows, status=status, **sections)


def table(folder, target=0.5, axis="rounds", against="", metric="eval/accuracy", marks=None):
    found = group_runs(load([folder]))
    baseline = find_baseline(found, against, []) if against else NO_BASELINE
    question = Question(metric, parse_selection("last", metric), baseline=baseline, x_axis=axis)
    arrangement = arrange(found, {}, larger_is_better=True)
    return target_table(found, question, target, durations_to(found, metric, target), marks or {}, arrangement)


def test_the_crossing_is_taken_along_every_axis(tmp_path):
    # From 0.2 in round 2 to 0.6 in round 4, the target is three quarters of the way: 3.5. Round 3 has no evaluation.
    cell(tmp_path, "fedavg", [[0.1, 0.2, None, 0.6]])
    result = table(tmp_path)
    assert result.columns == ["Strategy", "rounds", "bytes", "steps", "seconds"]
    assert result.texts == [["fedavg", "3.5", "7.0 kB", "10", "1.8 s"]]
    (record,) = result.records
    medians = [record[f"{name}_median"] for name in ("rounds", "bytes", "steps", "seconds")]
    assert medians == pytest.approx([3.5, 7000, 10.5, 1.75])
    assert (record["metric"], record["target"], record["seeds"], record["reached"]) == ("eval/accuracy", 0.5, 1, 1)


def test_the_crossing_may_follow_the_initial_model(tmp_path):
    # From 0.1 at the start to 0.9 in round 1, the target is half of the way, on every axis: nothing was spent before.
    start = {"round": 0, "eval/accuracy": 0.1, "time/total_s": 0.0}
    start |= {"comm/bytes_up_total": 0, "comm/bytes_down_total": 0}
    first = {"round": 1, "eval/accuracy": 0.9, "local/steps": 6, "time/total_s": 2.0}
    first |= {"comm/bytes_up_total": 1000, "comm/bytes_down_total": 1000}
    make(tmp_path / "run", rows=[start, first], federation={"num_rounds": 1})
    (record,) = table(tmp_path).records
    assert [record[f"{name}_median"] for name in ("rounds", "bytes", "steps", "seconds")] == [0.5, 1000, 3, 1]
    make(tmp_path / "other", seed=1, rows=[start], status="diverged", federation={"num_rounds": 1})
    (record,) = table(tmp_path).records  # it took longer than its planned round
    assert (record["seeds"], record["reached"], record["rounds_at_least"]) == (2, 1, 0.75)


def test_seeds_have_a_median_and_a_range(tmp_path):
    # Reached in rounds 1, 2 and 4; the best value before is 0.4.
    cell(tmp_path, "fedavg", [[0.5], [0.4, 0.5], [0.4, 0.1, 0.2, 0.5]])
    (record,) = table(tmp_path).records
    assert [record[f"rounds_{what}"] for what in ("low", "median", "high", "at_least")] == [1, 2, 4, 2]
    assert table(tmp_path).texts == [["fedavg", "2 (1–4)", "4.0 kB (2.0 kB–8.0 kB)", "6 (3–12)", "1.0 s (0.5 s–2.0 s)"]]


def test_fewer_than_half_give_a_bound(tmp_path):
    cell(tmp_path, "fedavg", [[0.1] * 40, [0.1] * 40, [0.1, 0.5]])
    assert table(tmp_path).texts == [["fedavg", ">40, 1/3 seeds", ">80.0 kB", ">120", ">20.0 s"]]
    (record,) = table(tmp_path).records
    assert (record["rounds_median"], record["rounds_at_least"], record["seeds"], record["reached"]) == (None, 40, 3, 1)


def test_a_diverged_run_counts_as_longer_than_its_planned_rounds(tmp_path):
    cell(tmp_path, "fedavg", [[0.1, 0.2], [0.1, 0.2]], statuses=["diverged", "diverged"], num_rounds=20)
    cell(tmp_path, "scaffold", [[0.1, 0.2]], statuses=["interrupted"], num_rounds=20)
    result = table(tmp_path)
    assert result.texts == [
        ["fedavg", ">20, 0/2 seeds", ">40.0 kB", ">60", ">10.0 s"],
        ["scaffold", ">2, 0/1 seeds", ">4.0 kB", ">6", ">1.0 s"],
    ]
    assert "if it diverged, than its planned run" in result.caption


def test_a_target_reached_before_a_failure_counts(tmp_path):
    cell(tmp_path, "fedavg", [[0.1, 0.5, 0.1], [0.1, 0.1, 0.5]], statuses=["diverged", "failed"])
    assert table(tmp_path).texts[0][1] == "2.5 (2–3)"


def test_runs_without_a_round_count_only_if_they_diverged(tmp_path):
    statuses = ["finished", "failed", "diverged", "diverged"]
    cell(tmp_path, "fedavg", [[0.1, 0.5], [], [], []], statuses=statuses)
    cell(tmp_path, "fedprox", [[], []], statuses=["failed", "interrupted"])
    cell(tmp_path, "scaffold", [[0.1, 0.5], [], []], statuses=["finished", "failed", "failed"])
    texts = table(tmp_path).texts
    assert [row[1] for row in texts] == [">40, 1/3 seeds", "–", "2"]
    assert texts[1] == ["fedprox", "–", "–", "–", "–"]


def test_nearly_equal_targets_have_different_names(tmp_path):
    cell(tmp_path, "fedavg", [[0.1, 0.5]])
    assert [table(tmp_path, target=target).id for target in (0.4, 0.40000001)] == ["target_0.4", "target_0.40000001"]


def test_a_run_that_diverged_in_its_first_round_counts_as_its_planned_rounds(tmp_path):
    cell(tmp_path, "fedavg", [[]], statuses=["diverged"])
    assert table(tmp_path).texts == [["fedavg", ">40, 0/1 seeds", "–", "–", "–"]]
    cell(tmp_path, "scaffold", [[0.5], [0.1] * 3, [], []], statuses=["finished", "interrupted", "diverged", "diverged"])
    assert table(tmp_path).texts[1] == ["scaffold", ">22, 1/4 seeds", ">6.0 kB", ">9", ">1.5 s"]


def test_losses_fall(tmp_path):
    cell(tmp_path, "fedavg", [[3.0, 2.0, 1.0]], metric="eval/loss")
    result = table(tmp_path, target=1.5, metric="eval/loss")
    assert result.texts[0][1] == "2.5"
    assert "until test loss first falls to 1.5" in result.caption
    assert (result.id, result.title) == ("target_1.5", "To test loss of 1.5")


def test_runs_without_the_metric_never_reach_a_target(tmp_path):
    cell(tmp_path, "fedavg", [[0.5]])
    cell(tmp_path, "scaffold", [[0.5] * 3], metric="eval/loss")
    assert [row[1] for row in table(tmp_path).texts] == ["1", ">3, 0/1 seeds"]


def test_speed_ups_are_over_the_baseline(tmp_path):
    cell(tmp_path, "fedavg", [[0.1] * 29 + [0.5]])
    cell(tmp_path, "fedprox", [[0.1] * 11 + [0.5]])
    cell(tmp_path, "scaffold", [[0.1] * 40])
    result = table(tmp_path, against="strategy=fedavg")
    assert result.columns == ["Strategy", "rounds", "speed-up", "bytes", "steps", "seconds"]
    # 30 / 12, and at least 40 rounds against 30.
    assert [row[:3] for row in result.texts] == [
        ["fedavg", "30", "baseline"],
        ["fedprox", "12", "2.5×"],
        ["scaffold", ">40, 0/1 seeds", "<0.8×"],
    ]
    assert [record["speed_up"] for record in result.records] == [1.0, 2.5, 0.75]
    assert [record["speed_up_is"] for record in result.records] == ["exact", "exact", "at most"]
    assert result.notes == [f"Signs: > {SIGNS['>']}; < {SIGNS['<']}."]
    assert result.caption.endswith("Speed-up in rounds: the median of fedavg over that of the row.")


def test_speed_ups_use_the_chosen_axis(tmp_path):
    cell(tmp_path, "fedavg", [[0.1] * 9 + [0.5]])
    rows = [
        {"eval/accuracy": 0.5, "local/steps": 3, "time/total_s": 40.0}
        | {"comm/bytes_up_total": 1000, "comm/bytes_down_total": 4000}
    ]
    make(tmp_path / "s", choices={"strategy": "scaffold"}, rows=rows, federation={"num_rounds": 40})
    ratios = {"rounds": 10 / 1, "bytes": 20_000 / 5000, "steps": 30 / 3, "seconds": 5 / 40}
    for axis, ratio in ratios.items():
        result = table(tmp_path, axis=axis, against="strategy=fedavg")
        assert result.records[1]["speed_up"] == pytest.approx(ratio)


def test_a_cell_without_a_baseline_has_no_speed_up(tmp_path):
    cell(tmp_path / "of", "fedavg", [[0.5]])
    for number in (1, 2):
        (directory := tmp_path / str(number)).mkdir()
        cell(directory, "fedavg", [[0.5]], num_rounds=number)
    cell(tmp_path, "scaffold", [[0.5]], num_rounds=9)
    result = table(tmp_path, against="strategy=fedavg")
    assert {row[result.columns.index("speed-up")] for row in result.texts} == {"–"}


def test_a_cells_mark_is_beside_its_name(tmp_path):
    cell(tmp_path, "fedavg", [[0.5]])
    cell(tmp_path, "scaffold", [[0.5]])
    result = table(tmp_path, marks={"strategy=scaffold": "†"})
    assert [row[0] for row in result.texts] == ["fedavg", "scaffold †"]
