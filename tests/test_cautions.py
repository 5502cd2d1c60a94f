"""Cautions of a comparison: unshared seeds and data, different code, and runs that no mean includes."""

import json

import pytest

from fedresearch.study.report.arms import arrange
from fedresearch.study.report.baseline import NO_BASELINE, find_baseline
from fedresearch.study.report.cautions import find_cautions
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.final import final_table
from fedresearch.study.report.load import load
from fedresearch.study.report.outcomes import find_outcome, select_values
from fedresearch.study.report.question import Question
from fedresearch.study.report.selection import parse_selection
from fedresearch.study.report.targets import durations_to, target_table
from tests.records import make


def code(commit, diff=None, **versions):
    """Return a record's fields about code: a commit of equal digits, and a digest of uncommitted changes."""
    return {"git": {"fedresearch": {"commit": commit * 40, "diff_sha256": diff and diff * 64}}, "versions": versions}


def cell(folder, chosen, *seeds, **fields):
    """Write a run for each seed, with further sections of the config and fields of the record."""
    for seed in seeds:
        make(folder / f"{chosen}_{seed}", seed=seed, choices={"strategy": chosen}, **fields)


def cautions_of(folder, against="strategy=fedavg"):
    found = group_runs(load([folder]))
    return find_cautions(found, find_baseline(found, against, []) if against else NO_BASELINE, "personal/accuracy")


def test_a_fair_comparison_has_no_cautions(tmp_path):
    record = {**code("a", torch="2.6.0"), "processor": "one", "partition_sha256": "p"}
    for strategy in ("fedavg", "scaffold"):
        cell(tmp_path, strategy, 0, 1, record=record)
    assert vars(cautions_of(tmp_path)) == {"warnings": [], "notes": [], "marks": {}, "legend": []}


def test_cells_without_a_shared_seed_are_warned_of(tmp_path):
    cell(tmp_path, "fedavg", 0, 1)
    cell(tmp_path, "fedprox", 1, 2)
    cell(tmp_path, "scaffold", 2, 3)
    assert cautions_of(tmp_path).warnings == [
        "strategy=scaffold shares no seed with its baseline strategy=fedavg (2, 3 against 0, 1): they are not compared"
    ]


def test_other_differences_to_the_baseline_are_warned_of(tmp_path):
    cell(tmp_path, "fedavg", 0, optimizer={"lr": 1, "schedule": {"_target_": "constant"}})
    cell(tmp_path, "scaffold", 0)
    found = cautions_of(tmp_path)
    assert found.warnings == ["strategy=scaffold also differs from its baseline in optimizer.lr"]


def test_runs_of_different_code_are_marked(tmp_path):
    cell(tmp_path, "fedavg", 0, 1, record=code("a", torch="2.6.0"))
    cell(tmp_path, "fedprox", 0, record=code("a", torch="2.6.0"))
    cell(tmp_path, "fedprox", 1, 2, record=code("a", "c", torch="2.6.0"))
    cell(tmp_path, "scaffold", 0, record=code("b", torch="2.6.0", flwr="1.20", tqdm="4"))
    found = cautions_of(tmp_path)
    assert found.marks == {"strategy=fedprox": "†", "strategy=scaffold": "‡"}
    assert found.legend == [
        "unmarked, 3 runs: commit aaaaaaaaaa, torch 2.6.0",
        "† 2 runs: commit aaaaaaaaaa with uncommitted changes (cccccc), torch 2.6.0",
        "‡ 1 run: commit bbbbbbbbbb, torch 2.6.0, flwr 1.20",
    ]
    assert found.notes == []


def test_the_last_mark_stands_for_all_further_versions(tmp_path):
    cell(tmp_path, "fedavg", 0, 1, record=code("a"))
    for number, commit in enumerate("bcdef"):
        cell(tmp_path, f"s{number}", 0, record=code(commit))
    found = cautions_of(tmp_path)
    assert found.marks == {f"strategy=s{number}": mark for number, mark in enumerate("†‡§§§")}
    assert found.legend[3] == "§ runs with 3 further versions of the code"
    assert len(found.legend) == 4


@pytest.mark.parametrize(
    ("record", "notes"),
    [
        (code("a", "c"), ["all runs: commit aaaaaaaaaa with uncommitted changes (cccccc)"]),
        ({"git": {"fedresearch": None}, "versions": {"fedresearch": "1.2"}}, []),
        ({}, []),
    ],
)
def test_code_that_all_runs_share_has_no_mark(tmp_path, record, notes):
    cell(tmp_path, "fedavg", 0, 1, record=record)
    found = cautions_of(tmp_path, against="")
    assert (found.marks, found.legend, found.notes) == ({}, [], notes)


def test_an_installed_version_is_a_version_of_the_code(tmp_path):
    cell(tmp_path, "fedavg", 0, 1, record={"git": {"fedresearch": None}, "versions": {"fedresearch": "1.2"}})
    cell(tmp_path, "scaffold", 0, record={"versions": {"fedresearch": "1.3", "numpy": "2"}})
    assert cautions_of(tmp_path).legend == ["unmarked, 2 runs: fedresearch 1.2", "† 1 run: fedresearch 1.3, numpy 2"]


def checkout(commit, **state):
    """Return a record's fields about a checkout."""
    return {"commit": commit * 40, "dirty": False, "diff_sha256": None, **state}


@pytest.mark.parametrize(
    ("other", "plain", "marked"),
    [
        (
            {"git": {"fedresearch": checkout("a", dirty=True), "working_directory": checkout("a", dirty=True)}},
            "commit aaaaaaaaaa, torch 2.6.0",
            "commit aaaaaaaaaa with untracked files, torch 2.6.0",
        ),
        (
            {"git": {"fedresearch": checkout("a"), "working_directory": checkout("b", dirty=True)}},
            "commit aaaaaaaaaa, torch 2.6.0",
            "commit aaaaaaaaaa, in a working directory of commit bbbbbbbbbb with untracked files, torch 2.6.0",
        ),
        (
            {"resumed": [{"git": {"fedresearch": checkout("b"), "working_directory": None}}, {"at": "now"}]},
            "commit aaaaaaaaaa, torch 2.6.0",
            "commit aaaaaaaaaa, torch 2.6.0, resumed with commit bbbbbbbbbb, torch 2.6.0",
        ),
        ({"resumed": [{"at": "now"}]}, None, None),
        ({"versions": {"torch": "2.6.0", "tqdm": "5"}}, None, None),
        (
            {"versions": {"torch": "2.6.0", "torchvision": "1"}},
            "commit aaaaaaaaaa, torch 2.6.0",
            "commit aaaaaaaaaa, torch 2.6.0, torchvision 1",
        ),
        (
            {"versions": {"torch": "2.6.0", "flwr-datasets": "1"}},
            "commit aaaaaaaaaa, torch 2.6.0",
            "commit aaaaaaaaaa, torch 2.6.0, flwr-datasets 1",
        ),
        (
            {"python": "3.12.1"},
            "commit aaaaaaaaaa, torch 2.6.0, python 3.11.7",
            "commit aaaaaaaaaa, torch 2.6.0, python 3.12.1",
        ),
    ],
)
def test_every_difference_in_code_is_marked(tmp_path, other, plain, marked):
    git = {"fedresearch": checkout("a"), "working_directory": checkout("a")}
    record = {"git": git, "python": "3.11.7", "versions": {"torch": "2.6.0"}}
    cell(tmp_path, "fedavg", 0, 1, record=record)
    cell(tmp_path, "scaffold", 0, 1, record={**record, **other})
    found = cautions_of(tmp_path)
    assert found.marks == ({"strategy=scaffold": "†"} if marked else {})
    assert found.legend == ([f"unmarked, 2 runs: {plain}", f"† 2 runs: {marked}"] if marked else [])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"git": {"fedresearch": checkout("a", dirty=True)}}, "commit aaaaaaaaaa with untracked files"),
        (
            {**code("a"), "resumed": [{"git": {"fedresearch": checkout("b")}}]},
            "commit aaaaaaaaaa, resumed with commit bbbbbbbbbb",
        ),
        (
            {"git": {"working_directory": checkout("b")}, "versions": {"fedresearch": "1"}},
            None,
        ),
    ],
)
def test_code_that_no_commit_identifies_is_noted_even_if_all_share_it(tmp_path, record, words):
    cell(tmp_path, "fedavg", 0, 1, record=record)
    assert cautions_of(tmp_path, against="").notes == ([f"all runs: {words}"] if words else [])


def test_different_seeds_are_reported_without_a_baseline(tmp_path):
    cell(tmp_path, "fedavg", 0, 1)
    cell(tmp_path, "fedprox", 1, 0)
    assert vars(cautions_of(tmp_path, against="")) == {"warnings": [], "notes": [], "marks": {}, "legend": []}
    cell(tmp_path, "moon", 0, 1, 2)
    found = cautions_of(tmp_path, against="")
    assert found.notes == ["strategy=fedavg and strategy=moon have different seeds (0, 1 against 0, 1, 2)"]
    assert found.warnings == []
    cell(tmp_path, "scaffold", 5, 6)
    found = cautions_of(tmp_path, against="")
    assert found.notes == []
    assert found.warnings == ["strategy=fedavg and strategy=scaffold share no seed (0, 1 against 5, 6)"]


def test_the_partitioners_seed_is_part_of_a_replicate(tmp_path):
    for number, strategy in enumerate(("fedavg", "scaffold"), start=1):
        cell(tmp_path, strategy, 0, partitioner={"_target_": "iid", "seed": number})
    assert cautions_of(tmp_path, against="").warnings == [
        "strategy=fedavg and strategy=scaffold share no seed (partitioner.seed=1 against partitioner.seed=2)"
    ]


def test_runs_that_stopped_at_their_target_are_noted(tmp_path):
    federation = {"num_rounds": 9, "target_accuracy": 0.9}
    cell(tmp_path, "fedavg", 0, 1, rows=[{}, {}], federation=federation)
    cell(tmp_path, "scaffold", 0, rows=[{}] * 9, federation=federation)
    cell(tmp_path, "scaffold", 1, rows=[{}], federation=federation, status="failed")
    (note,) = cautions_of(tmp_path, against="").notes
    assert note.startswith("2 of 3 finished runs stopped when they reached federation.target_accuracy")


def test_processors_are_counted(tmp_path):
    cell(tmp_path, "fedavg", 0, record={"processor": "one"})
    cell(tmp_path, "fedavg", 1, record={"processor": "another", "resumed": [{"processor": "third"}]})
    assert cautions_of(tmp_path, against="").notes == [
        "the runs used 3 kinds of processor, which may round differently"
    ]


def test_unexpectedly_different_partitions_are_warned_of(tmp_path):
    for strategy in ("fedavg", "scaffold"):
        for seed in (0, 1):
            other = strategy == "scaffold" and seed == 1
            cell(tmp_path, strategy, seed, record={"partition_sha256": f"{seed}{other}", "sampling_sha256": "s"})
    found = cautions_of(tmp_path)
    assert found.warnings == [
        "the partitions differ between runs of the same seed and settings in 1 of 2 cases, such as strategy=fedavg and "
        "strategy=scaffold: their code, packages or data differ"
    ]
    assert found.notes == ["the partitions differ from the baseline's in 1 of 1 cell, such as strategy=scaffold"]


def test_facts_about_the_data_are_reported_with_the_first_cell(tmp_path):
    cell(tmp_path, "fedavg", 0, record={"data": {"classes_untrained": [], "num_unheld": 0, "num_test_in_train": 0}})
    cell(tmp_path, "fedprox", 0, record={"data": {"classes_untrained": [5, 6], "num_unheld": 7}})
    cell(tmp_path, "scaffold", 0, record={"data": {"classes_untrained": [4], "num_test_in_train": 3}})
    cell(tmp_path, "fedper", 0, record={"data": "odd"})
    found = cautions_of(tmp_path)
    assert found.warnings == [
        "no client trains on some classes in 2 of 4 cells, such as strategy=fedprox: [5, 6]",
        "some test samples equal samples that clients have in 1 of 4 cells, such as strategy=scaffold: 3",
    ]
    assert found.notes == ["no client has some of the training samples in 1 of 4 cells, such as strategy=fedprox: 7"]


def test_partitions_that_differ_by_config_are_noted(tmp_path):
    for alpha in (0.1, 1.0, 10.0):
        for seed in (0, 1):
            record = {"partition_sha256": f"{alpha}{seed}", "initial_model_sha256": f"{seed}"}
            partitioner = {"_target_": "dirichlet", "alpha": alpha}
            make(tmp_path / f"{alpha}{seed}", seed=seed, partitioner=partitioner, record=record)
    found = cautions_of(tmp_path, against="partitioner.alpha=0.1")
    assert found.warnings == []
    assert found.notes == ["the partitions differ from the baseline's in 2 of 2 cells, such as alpha=1.0"]


def test_a_strategy_may_share_less_of_the_model(tmp_path):
    cell(tmp_path, "fedavg", 0, record={"initial_model_sha256": "all"})
    strategy = {"server": {"_target_": "FedAvg"}, "client": {"_target_": "FedPer"}}
    cell(tmp_path, "fedper", 0, record={"initial_model_sha256": "some"}, strategy=strategy)
    found = cautions_of(tmp_path)
    assert found.warnings == []
    assert found.notes == [
        "the initial shared weights differ from the baseline's in 1 of 1 cell, such as strategy=fedper"
    ]


@pytest.mark.parametrize(
    ("digest", "words"),
    [
        ("data_sha256", "samples"),
        ("validation_sha256", "validation data"),
        ("initial_model_sha256", "initial shared weights"),
        ("sampling_sha256", "sampled clients"),
    ],
)
def test_all_derived_data_are_checked_against_the_config(tmp_path, digest, words):
    for strategy in ("fedavg", "scaffold"):
        cell(tmp_path, strategy, 0, record={digest: strategy})
    (warning,) = cautions_of(tmp_path).warnings
    assert warning.startswith(f"the {words} differ between runs of the same seed and settings")


@pytest.mark.parametrize(
    ("digest", "sections"),
    [
        ("partition_sha256", {"federation": {"num_supernodes": 5}}),
        ("sampling_sha256", {"federation": {"fraction_train": 0.5}}),
        ("initial_model_sha256", {"dtype": "float64"}),
    ],
)
def test_derived_data_of_different_configs_may_differ(tmp_path, digest, sections):
    federation = {"num_supernodes": 9, "fraction_train": 1.0}
    cell(tmp_path, "fedavg", 0, record={digest: "one"}, federation=federation)
    sections = {**sections, "federation": federation | sections.get("federation", {})}
    cell(tmp_path, "scaffold", 0, record={digest: "another"}, **sections)
    assert cautions_of(tmp_path, against="").warnings == []


QUESTION = Question("eval/accuracy", parse_selection("last", "eval/accuracy"))
ROWS = [
    {"eval/accuracy": accuracy, "local/steps": 1, "comm/bytes_up_total": 10 * number, "comm/bytes_down_total": 0}
    | {"time/total_s": float(number)}
    for number, accuracy in enumerate((0.1, 0.5, 0.9), start=1)
]


@pytest.fixture
def messy(tmp_path):
    """Return a sweep with a good seed 0 in most cells, and other runs in all possible states."""
    ends = {
        "fedavg": ["finished", "failed"],
        "fedprox": ["finished", "diverged", "interrupted", "running"],  # without a process: killed
        "scaffold": ["interrupted"],
    }
    sections = {"federation": {"num_rounds": 8}}
    for strategy, states in ends.items():
        for seed, status in enumerate(states):
            rows = ROWS if status == "finished" else ROWS[:2]
            cell(tmp_path, strategy, seed, status=status, rows=rows, record={"error": "boom"}, **sections)
    make(tmp_path / "again", choices={"strategy": "fedprox"}, status="failed", rows=ROWS[:1], **sections)
    cell(tmp_path, "damaged", 0, rows=ROWS, **sections)
    (tmp_path / "damaged_0" / "run.json").write_text("{")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "refused.txt").write_text("model=x does not exist\n")
    names = [path.name for path in sorted(tmp_path.iterdir())]
    jobs = [{"overrides": [], "directory": name} for name in (*names, "never")]
    (tmp_path / "sweep.json").write_text(json.dumps(jobs))
    return tmp_path


def test_runs_outside_all_cells_are_noted(messy):
    found = cautions_of(messy)
    assert found.warnings == []
    assert found.notes == [
        "not in any cell: 1 damaged, 1 refused, 1 missing",
        "1 run left out, since another of the same cell and seed has more rounds or is newer: again",
    ]


def test_runs_outside_all_means_are_counted(messy):
    found = group_runs(load([messy]))
    selected = select_values(found.runs, QUESTION.selection)
    outcomes = {cell.label: find_outcome(cell, selected) for cell in found.cells}
    table = final_table(found, QUESTION, outcomes, {}, arrange(found, {}, larger_is_better=True), {})
    assert table.texts == [
        ["fedavg", "90", "1", "1 failed"],
        ["fedprox", "90", "1", "1 diverged, 2 unfinished"],
        ["scaffold", "–", "0", "1 unfinished"],
    ]
    assert "Runs that failed, diverged, stalled or are unfinished are not in the mean." in table.caption


def test_unfinished_runs_count_for_a_target_up_to_their_last_round(messy):
    found = group_runs(load([messy]))
    durations = durations_to(found, "eval/accuracy", 0.5)
    arrangement = arrange(found, {}, larger_is_better=True)
    table = target_table(found, QUESTION, 0.5, durations, {"strategy=scaffold": "†"}, arrangement)
    assert [row[:2] for row in table.texts] == [["fedavg", "2"], ["fedprox", "2"], ["scaffold †", "2"]]
    table = target_table(found, QUESTION, 0.9, durations_to(found, "eval/accuracy", 0.9), {}, arrangement)
    # fedprox: the diverged run had 8 planned rounds, and two others stopped after round 2: the median is above 2.5.
    assert [row[1] for row in table.texts] == ["3, 1/2 seeds", ">2.5, 1/4 seeds", ">2, 0/1 seeds"]
    assert table.caption.endswith("Runs that failed, stalled or are unfinished count here up to their last round.")
