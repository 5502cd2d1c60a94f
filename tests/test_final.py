"""The tables of final performance: means, intervals, and differences between cells."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedresearch.study.report.baseline import find_baseline
from fedresearch.study.report.build import build_report
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.final import across_table
from fedresearch.study.report.grids import pivot
from fedresearch.study.report.load import load
from fedresearch.study.report.outcomes import Outcome, find_outcome, select_values
from fedresearch.study.report.question import pose_question
from fedresearch.study.report.ranks import find_styles
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
    return build_report(found, question).tables[0]


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
    assert final(tmp_path).texts == [["fedavg", "80.3 ± 3.8", "3"]]  # nothing but its strategy names a cell alone


def test_one_seed_has_no_interval_and_equal_seeds_have_a_zero_interval(tmp_path):
    cell(tmp_path, "fedavg", [0.8])
    cell(tmp_path, "scaffold", [0.1, 0.1, 0.1])
    table = final(tmp_path)
    assert table.columns == ["Strategy", "Test accuracy (%)", "n"]
    assert table.texts == [["fedavg", "80", "1"], ["scaffold", "10 ± 0", "3"]]
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
    assert [row[4] for row in table.texts] == ["baseline", "no seed finished in both"]
    assert ": no run has a number for the mean." in table.caption


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
    assert texts[0] == ["baseline", ""]
    assert texts[1][0] == "+1.0 ± 2.6"
    assert "Differences to fedavg, in percentage points, use shared seeds" in table.caption
    # All of four differences with one sign: 2 of 16, doubled.
    assert table.caption.endswith("The exact signed-rank test is only in final.csv: its p cannot be below 0.25 here.")


def test_a_test_has_a_column_only_where_it_could_find_something(tmp_path):
    cell(tmp_path, "fedavg", [0.8, 0.81, 0.82, 0.8])
    cell(tmp_path, "fedprox", [0.9, 0.93, 0.91, 0.92])
    assert final(tmp_path, "strategy=fedavg").columns[-2:] == ["p (t)", "p (Wilcoxon)"]  # at least 2 / 16
    assert final(tmp_path, "strategy=fedavg").texts[1][-1] == "0.12"


@pytest.mark.parametrize(
    ("others", "tests", "signed_rank"),
    [
        # Three differences of one sign: 2 of 8 signs. Four comparisons make that 1.
        ([[0.9, 0.93, 0.91]], "test.", "cannot be below 0.25 here."),
        ([[0.9, 0.93, 0.91]] * 4, "test, with Holm's correction for the number of tests in the column.", "is 1 for so"),
    ],
)
def test_captions_of_tests_are_true_for_few_of_them(tmp_path, others, tests, signed_rank):
    cell(tmp_path, "fedavg", [0.8, 0.81, 0.82])
    for number, scores in enumerate(others):
        cell(tmp_path, f"other{number}", scores)
    caption = final(tmp_path, "strategy=fedavg").caption
    assert f"p-values are from the two-sided paired t-{tests}" in caption
    assert f"only in final.csv: its p {signed_rank}" in caption


def test_a_caption_explains_the_p_of_equal_samples_and_of_equal_differences(tmp_path):
    for strategy in ("fedavg", "fedprox"):
        cell(tmp_path, strategy, [0.5, 0.75, 0.625])
    table = final(tmp_path, "strategy=fedavg")
    assert table.texts[1][-2:] == ["0 ± 0", "1"]
    assert "paired t-test (1 for equal samples)" in table.caption
    cell(tmp_path, "scaffold", [0.25, 0.5, 0.375])
    table = final(tmp_path, "strategy=fedavg")
    assert table.texts[2][-2:] == ["-25 ± 0", "–"]
    assert "paired t-test (1 for equal samples; – where all differences are equal but not 0)" in table.caption


def test_captions_count_seeds(tmp_path):
    cell(tmp_path, "fedavg", [0.8])
    assert "round: n = 1 seed, so there is no interval. All digits" in final(tmp_path).caption
    cell(tmp_path, "scaffold", [0.8, 0.9, 0.8])
    assert "interval over n = 1 to 3 seeds (no interval for one seed). The best" in final(tmp_path).caption


def test_titles_in_a_caption_are_in_lower_case(tmp_path):
    for strategy, dataset in product(("fedavg", "scaffold"), ("digits", "mnist")):
        name, choices = f"{strategy}_{dataset}", {"strategy": strategy, "dataset": dataset}
        make(tmp_path / name, choices=choices, rows=[{METRIC: 0.5}], dataset={"name": dataset})
    assert "The best mean for each dataset is bold" in final(tmp_path).caption


def test_only_shared_seeds_are_compared(tmp_path):
    cell(tmp_path, "fedavg", [0.8, 0.8, None, None])
    cell(tmp_path, "fedprox", [None, 0.7, 0.1, None])
    cell(tmp_path, "scaffold", [None, None, 0.9, 0.9])
    table = final(tmp_path, "strategy=fedavg")
    differences = [row[table.columns.index("difference") :] for row in table.texts]
    assert differences == [["baseline"], ["-10 (n=1)"], ["no shared seed"]]  # no test of one seed
    assert [record["shared_seeds"] for record in table.records] == [None, 1, 0]
    assert table.records[1]["difference"] == pytest.approx(-0.1)
    assert table.caption.endswith("use shared seeds, with their 95 % t-interval.")


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
    assert column[0].startswith("81.0 [")
    assert column[1] == "–"


@pytest.mark.parametrize(
    ("rule", "mean", "caption"),
    [
        ("last", 0.8, "Test accuracy (%) after the last round: n = 1 seed, so there is no interval."),
        (
            "mean_last:2",
            (0.8 + 0.99) / 2,
            "Test accuracy (%), mean of the last 2 evaluated rounds, or of all where there are fewer: n = 1 seed,",
        ),
        (
            "best_test",
            0.99,
            "best on test: Test accuracy (%) in its best round, which is unknown without the test data",
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
    assert table.columns == ["Strategy", "IQM [95 %]", "n"]
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
    assert [row[0] for row in table.texts] == ["fedavg", "fedprox, μ = 1", "fedprox, μ = 2"]
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
    others = found.other_keys((*rows, *cols), tuned)
    return pivot(found, rows, cols, others, mean_entry, "grid", "Grid", "", "Accuracy", {}, {})


def test_one_key_goes_down_and_one_across(tmp_path):
    for strategy, alpha, score in [("fedavg", 1.0, 0.1), ("fedavg", 10.0, 0.2), ("scaffold", 10.0, 0.3)]:
        cell(tmp_path, strategy, [score], alpha)
    table = grid(tmp_path, ["strategy"], ["partitioner.alpha"])
    assert table.columns == ["Strategy", "α = 1", "α = 10"]
    assert table.texts == [["fedavg", "0.10", "0.20"], ["scaffold", "", "0.30"]]
    assert table.records[1] == {"strategy": "scaffold", "partitioner.alpha=1.0": None, "partitioner.alpha=10.0": 0.3}


def test_other_keys_have_separate_columns(tmp_path):
    for epochs in (1, 5):
        for strategy in ("fedavg", "scaffold"):
            for alpha in (0.1, 1.0):
                cell(tmp_path, strategy, [epochs / 10 + alpha / 100], alpha, local={"epochs": epochs})
    table = grid(tmp_path, ["strategy"], ["partitioner.alpha"])
    assert table.columns == ["Local epochs E", "Strategy", "α = 0.1", "α = 1"]
    assert table.texts == [
        ["1", "fedavg", "0.10", "0.11"],
        ["1", "scaffold", "0.10", "0.11"],
        ["5", "fedavg", "0.50", "0.51"],
        ["5", "scaffold", "0.50", "0.51"],
    ]


def test_a_tuned_key_needs_no_column_if_other_keys_identify_cells(tmp_path):
    for strategy, alpha, lr in [("fedavg", 0.1, 1.0), ("fedavg", 1.0, 2.0), ("scaffold", 0.1, 3.0)]:
        cell(tmp_path, strategy, [lr / 10], alpha, optimizer={"lr": lr, "schedule": {}})
    tuned = grid(tmp_path, ["strategy"], ["partitioner.alpha"], ["optimizer.lr"])
    assert tuned.texts == [["fedavg", "0.10", "0.20"], ["scaffold", "0.30", ""]]
    cell(tmp_path, "scaffold", [0.4], 0.1, optimizer={"lr": 4.0, "schedule": {}})
    assert grid(tmp_path, ["strategy"], ["partitioner.alpha"], ["optimizer.lr"]).columns[0] == "Learning rate η"


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


def styles(panels, **options):
    """Return how means stand out; a panel is a list of scores for each arm, and None is a run that diverged."""
    outcomes = {
        f"{panel}{arm}": Outcome(
            {str(seed): score for seed, score in enumerate(scores) if score is not None},
            {"diverged": 1} if None in scores else {},
        )
        for panel, arms in panels.items()
        for arm, scores in enumerate(arms)
    }
    labels = [[label for label in outcomes if label[0] == panel] for panel in panels]
    return find_styles(labels, outcomes, **{"larger_is_better": True, **options})


# Differences of 1, 2, 3 have t = 2 sqrt(3), and two-sided p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(6 / 7) = 0.0742 with two
# degrees of freedom. Those of 2, 3, 4 have p = 1 - sqrt(27 / 29) = 0.0351, which Holm's correction for two comparisons
# makes 0.0702.
BEST, CLOSE, WORSE = [10, 10, 10], [9, 8, 7], [8, 7, 6]


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([BEST, CLOSE], ["best", "close"]),
        ([WORSE, BEST], ["", "best"]),
        ([BEST, CLOSE, WORSE], ["best", "close", "close"]),
        ([BEST, [8.1, 8, 7.9], WORSE], ["best", "", ""]),  # the smaller p, 0.0008, is doubled instead
        ([BEST, [0.1 * 100, 10, 10 - 1e-13]], ["best", "best"]),
        ([BEST, [9, 9, 9]], ["best", ""]),  # without spread
        ([[10], [9]], ["best", ""]),
        ([[10, 10, None], [9, 8, 7]], ["", ""]),
        ([BEST], [""]),
    ],
)
def test_the_best_is_bold_and_those_not_significantly_worse_are_underlined(arms, expected):
    found = styles({"a": arms, "b": [WORSE, BEST]})
    assert [found.get(f"a{arm}", "") for arm in range(len(arms))] == expected
    assert (found.get("b0"), found["b1"]) == (None, "best")  # whatever is in another panel


def test_the_best_loss_is_the_smallest():
    assert styles({"a": [BEST, CLOSE]}, larger_is_better=False) == {"a0": "close", "a1": "best"}


def test_arms_are_down_and_panels_across_where_nobody_asks(tmp_path):
    for alpha, gain in ((0.1, 0.0), (1.0, 0.3)):
        cell(tmp_path, "fedavg", [0.5 + gain, 0.52 + gain, 0.51 + gain], alpha)
        cell(tmp_path, "scaffold", [0.6 + gain, 0.61 + gain, 0.62 + gain], alpha)
    found = group_runs(load([tmp_path]))
    *_, table = build_report(found, pose_question(found)).tables
    assert table.columns == ["Strategy", "α = 0.1", "α = 1"]
    assert [*table.head_rows] == [
        [("", 1), ("Test accuracy (%)", 2)],
        [("Strategy", 1), ("α = 0.1", 1), ("α = 1", 1)],
    ]
    assert [[entry.style for entry in row[1:]] for row in table.rows] == [["", ""], ["best", "best"]]
    # The interval is t(2) = 4.303 times 0.01 / sqrt(3).
    assert table.texts == [["fedavg", "51.0 ± 2.5", "81.0 ± 2.5"], ["scaffold", "61.0 ± 2.5", "91.0 ± 2.5"]]
    assert "over n = 3 seeds. The best mean for each α is bold." in table.caption
    assert table.records[0] == pytest.approx(
        {"strategy": "fedavg", "partitioner.alpha=0.1": 0.51, "partitioner.alpha=1.0": 0.81}
    )


def test_several_keys_across_have_a_row_of_heads_each(tmp_path):
    for alpha, epochs, strategy in product((0.1, 1.0), (1, 5), ("fedavg", "scaffold")):
        cell(tmp_path, strategy, [0.5], alpha, local={"epochs": epochs})
    table = grid(tmp_path, ["strategy"], ["local.epochs", "partitioner.alpha"])
    assert [*table.head_rows] == [
        [("", 1), ("Accuracy", 4)],
        [("", 1), ("E = 1", 2), ("E = 5", 2)],
        [("Strategy", 1), *((head, 1) for head in ("α = 0.1", "α = 1") * 2)],
    ]
    assert table.columns[1:3] == ["E = 1, α = 0.1", "E = 1, α = 1"]


def test_many_cells_fit_in_a_table(tmp_path):
    for number in range(40):
        for seed in (0, 1):
            rows = [{METRIC: 0.5 + seed / 10 + number / 100 * (seed + 1)}]
            make(tmp_path / f"{number}_{seed}", seed=seed, rows=rows, optimizer={"lr": number, "schedule": {}})
    table = final(tmp_path, "optimizer.lr=0")
    assert len(table.rows) == 40
    adjusted = sorted((record["p_t"], record["p_t_holm"]) for record in table.records[1:])
    assert adjusted[0][1] == pytest.approx(min(1, 39 * adjusted[0][0]))
