"""A paper's numbers beside result-up runs of its preset."""

import pytest

from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.published import published_table
from tests.records import make

TABLE1 = "mcmahan2017_table1_2nn"


def cell(folder, fraction, reached, *, partitioner="iid", experiment=TABLE1, num_rounds=1000, seed=0, **fields):
    """Write a run that jumps to 0.97 in a round; None: never."""
    rows = [
        {"eval/accuracy": 0.1 if reached is None or number < reached else 0.97} for number in range(1, num_rounds + 1)
    ]
    rows = rows[: reached or num_rounds]
    make(
        folder / f"{partitioner}_{fraction}_{seed}_{len([*folder.iterdir()])}",
        seed=seed,
        rows=rows,
        choices={"experiment": experiment, "partitioner": partitioner, **fields.pop("choices", {})},
        partitioner={"_target_": partitioner},
        federation={"fraction_train": fraction, "num_rounds": num_rounds},
        **fields,
    )


def table(folder, marks=None):
    return published_table(group_runs(load([folder])), marks or {})


def rows_by_measure(folder):
    """Return a mapping of each row's first three entries to the others."""
    return {tuple(row[:3]): row[3:] for row in table(folder).texts}


def test_our_numbers_stand_beside_the_papers(tmp_path):
    for seed, reached in enumerate((300, 320, 340)):
        cell(tmp_path, 0.01, reached, seed=seed)
    cell(tmp_path, 0.1, 160)
    result = table(tmp_path)
    heads = ["partitioner", "fraction_train", "measure", "published", "ours", "ratio", "accepted", "within"]
    assert result.columns == heads
    assert result.texts == [
        ["iid", "0.01", "rounds to 97 %", "316", "320 (300–340)", "1.01", "94.8–379.2", "yes"],
        ["iid", "0.1", "rounds to 97 %", "87", "160", "1.84", "26.1–104.4", "no"],
        [
            "iid",
            "0.1",
            "speed-up over federation.fraction_train=0.01 to 97 %",
            "3.6",
            "2.0×",
            "0.56",
            "2.34–4.86",
            "no",
        ],
    ]
    assert [record["ours"] for record in result.records] == [320, 160, 2]
    assert result.records[0]["source"] == "McMahan et al. 2017, Table 1"
    assert "McMahan et al. 2017, Table 1" in result.caption


def test_a_bound_is_not_within_an_open_decision(tmp_path):
    cell(tmp_path, 0.01, None, num_rounds=250)  # its median is above 250, and up to 379.2 is accepted
    cell(tmp_path, 0.1, None, num_rounds=250)  # up to 104.4 is
    cell(tmp_path, 0.2, 77)
    rows = rows_by_measure(tmp_path)
    speed_up = "speed-up over federation.fraction_train=0.01 to 97 %"
    assert rows["iid", "0.01", "rounds to 97 %"] == ["316", ">250, 0/1 seeds", "–", "94.8–379.2", "–"]
    assert rows["iid", "0.1", "rounds to 97 %"] == ["87", ">250, 0/1 seeds", "–", "26.1–104.4", "no"]
    assert rows["iid", "0.1", speed_up] == ["3.6", "–", "–", "2.34–4.86", "–"]
    assert rows["iid", "0.2", speed_up] == ["4.1", ">3.2×", "–", "2.665–5.535", "–"]  # 250 / 77
    records = {record["measure"]: record for record in table(tmp_path).records}
    bound = records[speed_up.replace("97 %", "0.97")]  # the CSV has shares
    assert (bound["ours"], bound["ours_text"]) == (None, ">3.2×")


def test_a_cell_that_is_too_slow_is_not_within(tmp_path):
    cell(tmp_path, 0.01, 100)
    cell(tmp_path, 0.2, None, num_rounds=250)
    rows = rows_by_measure(tmp_path)
    speed_up = "speed-up over federation.fraction_train=0.01 to 97 %"
    assert rows["iid", "0.2", speed_up] == ["4.1", "<0.4×", "–", "2.665–5.535", "no"]


def test_a_speed_up_needs_the_baseline_of_the_same_setting(tmp_path):
    cell(tmp_path, 0.01, 300, partitioner="pathological_mcmahan")
    cell(tmp_path, 0.1, 100)
    rows = rows_by_measure(tmp_path)
    assert rows["iid", "0.1", "rounds to 97 %"][1] == "100"
    speed_up = "speed-up over federation.fraction_train=0.01 to 97 %"
    assert rows["iid", "0.1", speed_up] == ["3.6", "–", "–", "2.34–4.86", "–"]


def test_other_keys_have_separate_rows(tmp_path):
    for epochs in (1, 5):
        cell(tmp_path, 0.1, 60 * epochs, local={"epochs": epochs})
    cell(tmp_path, 0.01, 300, local={"epochs": 1})
    speed_up = "speed-up over federation.fraction_train=0.01 to 97 %"
    rows = [row[1:5] for row in table(tmp_path).texts]
    assert sorted(rows) == [
        ["0.01", "rounds to 97 %", "316", "300"],
        ["0.1", "rounds to 97 %", "87", "300"],
        ["0.1", "rounds to 97 %", "87", "60"],
        ["0.1", speed_up, "3.6", "1.0×"],
        ["0.1", speed_up, "3.6", "5.0×"],
    ]


def test_runs_of_different_code_are_marked(tmp_path):
    cell(tmp_path, 0.1, 100)
    cell(tmp_path, 0.2, 70)
    texts = table(tmp_path, {"fraction_train=0.2": "†"}).texts
    assert {row[1]: row[4] for row in texts if row[2].startswith("rounds")} == {"0.1": "100", "0.2": "70 †"}


def test_last_and_best_accuracies_differ(tmp_path):
    for seed, (best, last) in enumerate([(0.995, 0.99), (0.993, 0.98)]):
        rows = [{"eval/accuracy": best}, {"eval/accuracy": last}]
        choices = {"experiment": "li2022_niid_bench_mnist", "strategy": "fedavg"}
        make(tmp_path / str(seed), seed=seed, rows=rows, choices=choices)
    rows = {row[3]: row[4:] for row in table(tmp_path).texts}
    # 12.71 is the table's t at one degree of freedom; half the distance of two values is their standard error.
    width = 12.71 * (0.995 - 0.993) / 2
    best = ["99.09 ± 0.05", f"99.4 ± {100 * width:.1f}", "1.00", "98.69–99.49", "yes"]
    assert rows["best test accuracy (%)"] == best
    assert rows["last test accuracy (%)"][1].startswith("98.5 ± 6.")
    assert rows["last test accuracy (%)"][2:] == ["0.99", "", ""]
    assert table(tmp_path).records[0]["ours"] == pytest.approx(0.994)


def test_a_published_bound_has_no_ratio(tmp_path):
    choices = {"experiment": "karimireddy2020_epochs", "strategy": "fedavg"}
    rows = [{"eval/accuracy": 0.9}]
    make(tmp_path / "run", rows=rows, choices=choices, partitioner={"strictness": 1}, local={"epochs": 20})
    assert table(tmp_path).texts == [["1", "20", "fedavg", "rounds to 85 %", ">1000", "1", "–", "", ""]]


def test_without_a_finished_run_nothing_is_within(tmp_path):
    choices = {"experiment": "li2022_fcube", "partitioner": "natural_id", "strategy": "fedavg"}
    make(tmp_path / "run", status="failed", rows=[{"eval/accuracy": 0.999}], choices=choices)
    assert [row[4:] for row in table(tmp_path).texts] == [["–", "–", "99.3–100", "–"]]


def test_runs_that_differ_from_the_preset_are_not_judged(tmp_path):
    words = [f"experiment={TABLE1}", "federation.fraction_train=0.1", "seed=1", "tracker=none", "dataset.root=x"]
    cell(tmp_path, 0.1, 40, record={"overrides": words})
    judged = table(tmp_path)
    assert (judged.texts[0][-1], judged.notes) == ("yes", ["Signs: – our runs do not say."])
    cell(tmp_path, 0.1, 40, seed=1, record={"overrides": [*words, "federation.num_rounds=3", "+local.steps=1"]})
    other = table(tmp_path)
    assert other.texts[0][-1] == "–"
    assert other.notes[1:] == [
        "Not judged, since some runs differ from the preset: +local.steps=1, federation.num_rounds=3."
    ]


def test_a_speed_up_over_several_baselines_is_unknown(tmp_path):
    for lr in (0.1, 0.2):
        cell(tmp_path, 0.01, 40, optimizer={"lr": lr, "schedule": {"_target_": "constant"}})
    cell(tmp_path, 0.1, 10)
    assert rows_by_measure(tmp_path)["iid", "0.1", "speed-up over federation.fraction_train=0.01 to 97 %"][1] == "–"


@pytest.mark.parametrize(
    "others",
    [
        [{"experiment": None}],
        [{"experiment": "of_ours"}],
        [{"experiment": TABLE1, "choices": {"tune": "lr"}}],
        [{"experiment": TABLE1}, {"experiment": "li2022_fcube", "partitioner": "other"}],
        [{"experiment": TABLE1, "partitioner": "not_in_the_paper"}],
    ],
)
def test_runs_of_no_preset_have_no_table(tmp_path, others):
    for fields in others:
        cell(tmp_path, 0.1, 5, **fields)
    assert table(tmp_path) is None
