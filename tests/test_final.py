"""The tables of final performance: means, intervals, and differences between cells."""

import numpy as np
import pytest
from scipy import stats

from fedresearch.study.report.baseline import find_baseline
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.final import across_table, final_table
from fedresearch.study.report.grids import pivot
from fedresearch.study.report.load import load
from fedresearch.study.report.outcomes import find_outcome, select_values
from fedresearch.study.report.question import pose_question
from fedresearch.study.report.selection import parse_selection
from fedresearch.study.report.tables import Entry, format_mean
from tests.records import make

METRIC = "eval/accuracy"
SCORES = {
    "fedavg": [0.80, 0.82, 0.79, 0.85],
    "fedprox": [0.81, 0.85, 0.80, 0.84],
    "scaffold": [0.90, 0.93, 0.95, 0.94],
}


def cell(folder, chosen, scores, alpha=1.0, **sections):
    """Write a finished run of a strategy for each seed, with its score in the last round; None skips a seed."""
    partitioner = {"_target_": "dirichlet", "alpha": alpha}
    for seed, score in enumerate(scores):
        if score is not None:
            name = f"{chosen}_{alpha}_{seed}_{len([*folder.iterdir()])}"
            rows = [{METRIC: 0.99}, {METRIC: score}]
            make(folder / name, seed=seed, choices={"strategy": chosen}, rows=rows, partitioner=partitioner, **sections)


def final(folder, against="", rule="last", metric=METRIC):
    found = group_runs(load([folder]))
    question = pose_question(found, metric=metric, select=rule, baseline=against)
    return final_table(found, question, outcomes(found, question.selection), {})


def outcomes(found, rule):
    selected = select_values(found.runs, rule)
    return {cell.label: find_outcome(cell, selected) for cell in found.cells}


def across(folder, against, *tuned):
    found = group_runs(load([folder]))
    question = pose_question(found, metric=METRIC, baseline=against, tuned=tuned)
    return across_table(found, question, outcomes(found, question.selection))


def test_a_mean_has_its_interval(tmp_path):
    cell(tmp_path, "fedavg", SCORES["fedavg"][:3])
    (record,) = final(tmp_path).records
    low, high = stats.t.interval(0.95, 2, np.mean([0.80, 0.82, 0.79]), stats.sem([0.80, 0.82, 0.79]))
    assert record["mean"] == pytest.approx((0.80 + 0.82 + 0.79) / 3)
    assert record["half_width_95"] == pytest.approx((high - low) / 2)
    assert final(tmp_path).texts == [["all runs", "0.803 ± 0.038", "3"]]


def test_one_seed_has_no_interval_and_equal_seeds_have_a_zero_interval(tmp_path):
    cell(tmp_path, "fedavg", [0.8])
    cell(tmp_path, "scaffold", [0.1, 0.1, 0.1])
    table = final(tmp_path)
    assert table.columns == ["strategy", METRIC, "n"]
    assert table.texts == [["fedavg", "0.8", "1"], ["scaffold", "0.1 ± 0", "3"]]
    assert table.records[0]["half_width_95"] is None


def test_runs_left_out_of_the_mean_are_counted(tmp_path):
    cell(tmp_path, "fedavg", [0.8, 0.9])
    ends = ["failed", "diverged", "stalled", "interrupted", "running", "finished"]
    for seed, status in enumerate(ends, start=2):
        rows = [] if status == "finished" else [{METRIC: 0.1}]
        make(
            tmp_path / status, seed=seed, status=status, rows=rows, partitioner={"_target_": "dirichlet", "alpha": 1.0}
        )
    table = final(tmp_path)
    assert table.columns[-1] == "not in the mean"
    assert table.texts[0][2:] == ["2", "1 failed, 1 diverged, 1 stalled, 2 unfinished, 1 without the metric"]
    expected = {"mean": 0.85, "n": 2, "failed": 1, "diverged": 1, "stalled": 1, "unfinished": 2, "without": 1}
    assert {key: table.records[0][key] for key in expected} == pytest.approx(expected)


def test_a_table_needs_no_finished_run(tmp_path):
    for strategy in ("fedavg", "scaffold"):
        make(tmp_path / strategy, choices={"strategy": strategy}, status="failed", rows=[{METRIC: 0.5}])
    table = final(tmp_path, "strategy=fedavg")
    assert [row[1:4] for row in table.texts] == [["–", "0", "1 failed"]] * 2
    assert [row[4] for row in table.texts] == ["baseline", "no shared seed"]


def test_differences_are_paired_and_p_values_corrected_for_the_table(tmp_path):
    for strategy, scores in SCORES.items():
        cell(tmp_path, strategy, scores)
    table = final(tmp_path, "strategy=fedavg")
    base, *others = (np.array(scores) for scores in SCORES.values())
    t_p = [stats.ttest_rel(scores, base).pvalue for scores in others]
    # Holm for two p-values: the smaller is doubled, and the larger is at least as large as that.
    assert t_p[1] < t_p[0]
    t_p = [max(t_p[0], 2 * t_p[1]), 2 * t_p[1]]
    for record, scores, p in zip(table.records[1:], others, t_p, strict=True):
        assert record["difference"] == pytest.approx((scores - base).mean())
        width = stats.t.ppf(0.975, 3) * stats.sem(scores - base)
        assert record["difference_half_width_95"] == pytest.approx(width)
        assert record["p_t_holm"] == pytest.approx(p)
        assert record["shared_seeds"] == 4
    # All four above zero: 2 of 16 signs, doubled for the first of two comparisons. With ranks 2, 2 and 4 above
    # zero and 2 below, 4 of 16 signs give the sum 8 or more, and as many give 2 or less.
    assert [record["p_wilcoxon_holm"] for record in table.records] == [None, 8 / 16, 2 * 2 / 16]
    texts = [row[table.columns.index("difference") :] for row in table.texts]
    assert texts[0] == ["baseline", "", ""]
    assert texts[1][0] == "+0.010 ± 0.026"
    assert "Differences to strategy=fedavg use shared seeds" in table.caption
    assert table.caption.endswith("Before this correction, p of a signed-rank test of 4 seeds is at least 0.125.")


def test_only_shared_seeds_are_compared(tmp_path):
    cell(tmp_path, "fedavg", [0.8, 0.8, None, None])
    cell(tmp_path, "fedprox", [None, 0.7, 0.1, None])
    cell(tmp_path, "scaffold", [None, None, 0.9, 0.9])
    table = final(tmp_path, "strategy=fedavg")
    differences = [row[table.columns.index("difference") :] for row in table.texts]
    assert differences == [["baseline", "", ""], ["-0.1 (n=1)", "–", "–"], ["no shared seed", "–", "–"]]
    assert [record["shared_seeds"] for record in table.records] == [None, 1, 0]
    assert table.records[1]["difference"] == pytest.approx(-0.1)
    assert table.caption.endswith("each with Holm's correction for all comparisons of the table.")


def test_a_cell_without_a_baseline_is_not_compared(tmp_path):
    for alpha in (0.1, 1.0):
        cell(tmp_path, "fedavg", [0.8, 0.9], alpha)
    cell(tmp_path, "scaffold", [0.8, 0.9], 10.0)
    table = final(tmp_path, "strategy=fedavg")
    # A cell that is nobody's baseline is not marked as one either.
    assert [row[table.columns.index("difference")] for row in table.texts] == ["–", "–", "–"]


def test_four_seeds_have_an_interquartile_mean(tmp_path):
    cell(tmp_path, "fedavg", SCORES["fedavg"])
    cell(tmp_path, "scaffold", SCORES["scaffold"][:3])
    table = final(tmp_path)
    first, second = table.records
    assert first["iqm"] == pytest.approx((0.80 + 0.82) / 2)
    assert 0.79 <= first["iqm_low_95"] < first["iqm"] < first["iqm_high_95"] <= 0.85
    assert (second["iqm"], second["iqm_low_95"]) == (None, None)
    column = [row[table.columns.index("IQM [95 %]")] for row in table.texts]
    assert column[0].startswith("0.810 [")
    assert column[1] == "–"


@pytest.mark.parametrize(
    ("rule", "mean", "caption"),
    [
        ("last", 0.8, "eval/accuracy after the last round: mean ±"),
        (
            "mean_last:2",
            (0.8 + 0.99) / 2,
            "eval/accuracy, mean of the last 2 evaluated rounds, or of all where there are fewer: mean ±",
        ),
        (
            "best_test",
            0.99,
            "best on test: eval/accuracy in its best round, which is unknown without the test data",
        ),
    ],
)
def test_the_caption_names_the_rule(tmp_path, rule, mean, caption):
    cell(tmp_path, "fedavg", [0.8])
    table = final(tmp_path, rule=rule)
    assert table.records[0]["mean"] == pytest.approx(mean)
    assert table.caption.startswith(caption)


def test_settings_that_all_values_have_are_pooled(tmp_path):
    scores = {
        ("fedavg", 0.1): [0.1, 0.2],
        ("fedavg", 1.0): [0.5, 0.6],
        ("fedavg", 10.0): [0.9, 0.9],  # scaffold has only one seed here
        ("scaffold", 0.1): [0.3, 0.4],
        ("scaffold", 1.0): [0.7, 0.8, 0.6, 0.5],
        ("scaffold", 10.0): [0.9],
    }
    for (strategy, alpha), values in scores.items():
        cell(tmp_path, strategy, values, alpha)
    mu = {"server": {"_target_": "FedProx", "proximal_mu": 1}}
    for alpha, values in {0.1: [0.1, 0.3], 1.0: [0.5, 0.5], 10.0: [0.9, 0.9]}.items():
        cell(tmp_path, "fedprox", values, alpha, strategy=mu)
    table = across(tmp_path, "strategy=fedavg")
    assert table.columns == ["strategy", "IQM [95 %]", "n"]
    assert [(record["strategy"], record["n"], record["settings"]) for record in table.records] == [
        ("fedavg", 4, 2),
        ("fedprox", 4, 2),
        ("scaffold", 4, 2),  # its other two seeds would give one setting more weight
    ]
    # A quarter of four scores, at both ends, is one score.
    expected = [(0.2 + 0.5) / 2, (0.3 + 0.5) / 2, (0.4 + 0.7) / 2]
    assert [record["value"] for record in table.records] == pytest.approx(expected)
    assert "over 2 settings of the other keys and the seeds that all values share there" in table.caption


def test_an_options_own_keys_distinguish_values_and_not_settings(tmp_path):
    for alpha in (0.1, 1.0):
        cell(tmp_path, "fedavg", [0.1, 0.2], alpha)
        for mu in (1, 2):
            cell(
                tmp_path, "fedprox", [0.1, 0.2], alpha, strategy={"server": {"_target_": "FedProx", "proximal_mu": mu}}
            )
    table = across(tmp_path, "strategy=fedavg")
    assert [row[0] for row in table.texts] == ["fedavg", "fedprox, proximal_mu=1", "fedprox, proximal_mu=2"]
    # A key that only some options have compares only their cells.
    table = across(tmp_path, "strategy.server.proximal_mu=1")
    assert [row[0] for row in table.texts] == ["1", "2"]


def test_tuned_keys_are_not_part_of_a_setting(tmp_path):
    rates = {("fedavg", 0.1): 0.01, ("fedavg", 1.0): 0.1, ("scaffold", 0.1): 1.0, ("scaffold", 1.0): 0.1}
    for (strategy, alpha), lr in rates.items():
        cell(tmp_path, strategy, [0.1, 0.2], alpha, optimizer={"lr": lr, "schedule": {}})
    assert across(tmp_path, "strategy=fedavg") is None
    table = across(tmp_path, "strategy=fedavg", "optimizer.lr")
    assert [row[0] for row in table.texts] == ["fedavg", "scaffold"]


def test_one_setting_is_not_pooled(tmp_path):
    for strategy, scores in SCORES.items():
        cell(tmp_path, strategy, scores)
    assert across(tmp_path, "strategy=fedavg") is None


def mean_entry(cell):
    mean = find_outcome(cell, select_values(cell.runs.values(), parse_selection("last", METRIC))).mean
    return Entry(f"{mean:.2f}", mean)


def grid(folder, rows, cols, tuned=()):
    found = group_runs(load([folder]))
    return pivot(found, rows, cols, found.other_keys((rows, cols), tuned), mean_entry, "grid", "Grid", "")


def test_one_key_goes_down_and_one_across(tmp_path):
    for strategy, alpha, score in [("fedavg", 1.0, 0.1), ("fedavg", 10.0, 0.2), ("scaffold", 10.0, 0.3)]:
        cell(tmp_path, strategy, [score], alpha)
    table = grid(tmp_path, "strategy", "partitioner.alpha")
    assert table.columns == ["strategy", "alpha=1.0", "alpha=10.0"]
    assert table.texts == [["fedavg", "0.10", "0.20"], ["scaffold", "", "0.30"]]
    assert table.records[1] == {"strategy": "scaffold", "partitioner.alpha=1.0": None, "partitioner.alpha=10.0": 0.3}


def test_other_keys_have_separate_columns(tmp_path):
    for epochs in (1, 5):
        for strategy in ("fedavg", "scaffold"):
            for alpha in (0.1, 1.0):
                cell(tmp_path, strategy, [epochs / 10 + alpha / 100], alpha, local={"epochs": epochs})
    table = grid(tmp_path, "strategy", "partitioner.alpha")
    assert table.columns == ["epochs", "strategy", "alpha=0.1", "alpha=1.0"]
    assert table.texts == [
        ["1", "fedavg", "0.10", "0.11"],
        ["5", "fedavg", "0.50", "0.51"],
        ["1", "scaffold", "0.10", "0.11"],
        ["5", "scaffold", "0.50", "0.51"],
    ]


def test_a_tuned_key_needs_no_column_if_other_keys_identify_cells(tmp_path):
    for strategy, alpha, lr in [("fedavg", 0.1, 1.0), ("fedavg", 1.0, 2.0), ("scaffold", 0.1, 3.0)]:
        cell(tmp_path, strategy, [lr / 10], alpha, optimizer={"lr": lr, "schedule": {}})
    tuned = grid(tmp_path, "strategy", "partitioner.alpha", ["optimizer.lr"])
    assert tuned.texts == [["fedavg", "0.10", "0.20"], ["scaffold", "0.30", ""]]
    cell(tmp_path, "scaffold", [0.4], 0.1, optimizer={"lr": 4.0, "schedule": {}})
    assert grid(tmp_path, "strategy", "partitioner.alpha", ["optimizer.lr"]).columns[0] == "lr"


def test_a_small_interval_is_not_zero():
    assert format_mean(1.0, 5e-4) == "1.00000 ± 0.00050"
    assert format_mean(1.0, 5e-13) == "1 ± 0"


def test_keys_may_be_named_by_their_last_part(tmp_path):
    for alpha, score in ((0.1, 0.5), (1.0, 0.7)):
        cell(tmp_path, "fedavg", [score, score + 0.1], alpha)
    found = group_runs(load([tmp_path]))
    assert found.full_name("alpha") == "partitioner.alpha"
    assert find_baseline(found, "alpha=0.1", []).text == "partitioner.alpha=0.1"
    assert [found.full_name(key) for key in ("partitioner.alpha", "nonsense")] == ["partitioner.alpha", "nonsense"]


def test_values_of_any_kind_are_keys(tmp_path):
    for number, hidden in enumerate([None, [1, 2], [{"a": 1}], True, "x|y", 3]):
        make(tmp_path / str(number), rows=[{METRIC: 0.5}], model={"hidden": hidden})
    table = final(tmp_path)
    assert [row[0] for row in table.texts] == ["null", "true", "3", "[1, 2]", '[{"a": 1}]', "x|y"]


def test_many_cells_fit_in_a_table(tmp_path):
    for number in range(40):
        for seed in (0, 1):
            rows = [{METRIC: 0.5 + seed / 10 + number / 100 * (seed + 1)}]
            make(tmp_path / f"{number}_{seed}", seed=seed, rows=rows, optimizer={"lr": number, "schedule": {}})
    table = final(tmp_path, "optimizer.lr=0")
    assert len(table.rows) == 40
    adjusted = sorted((record["p_t"], record["p_t_holm"]) for record in table.records[1:])
    assert adjusted[0][1] == pytest.approx(min(1, 39 * adjusted[0][0]))
