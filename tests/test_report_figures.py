"""Which figures a report has of its runs: their data, names, panels and captions."""

import json
import shutil
import warnings
from itertools import product

import numpy as np
import pytest

from fedresearch.runs.pictures import class_counts
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.plot_data import (
    client_spread,
    confusion,
    mean_curve,
    numeric_keys,
    plotted_runs,
)
from tests.records import make, report, rows


def partitioned(folder, name, alpha, seed, **more):
    partitioner = {"_target_": "dirichlet", "alpha": alpha, "seed": None}
    record = {"partition_sha256": f"{alpha} {more.get('strategy')}"}
    make(folder / name, seed=seed, rows=rows(0.5), record=record, partitioner=partitioner, **more)
    (folder / name / "partition.csv").write_text(PARTITION)


PARTITION = "client,train,val,test,class 0,class 1\n0,5,0,0,2,3\n1,4,0,0,4,0\n"


def test_a_partitions_title_has_the_settings_it_depends_on(tmp_path):
    for strategy in ("fedavg", "scaffold"):
        for alpha in (0.1, 1.0):
            partitioned(tmp_path, f"{strategy}{alpha}", alpha, 3, choices={"strategy": strategy})
    partitioned(tmp_path, "pooled", 0.1, 3, choices={"strategy": "central"}, strategy={"pooled": True})
    result = report(load([tmp_path]))
    titles = [picture.figure.get_suptitle() for name, picture in result.figures.items() if name.startswith("partition")]
    assert titles == ["α = 0.1, pooled, seed 3", "α = 0.1, seed 3", "α = 1, seed 3"]


def test_figures_have_captions(tmp_path):
    for seed in (0, 1):
        for alpha in (0.1, 1.0, 2.0):
            for lr in (0.1, 0.2):
                partitioned(tmp_path, f"{alpha}{lr}{seed}", alpha, seed, optimizer={"lr": lr})
    for path in tmp_path.glob("*/metrics.jsonl"):
        spread = dict.fromkeys((f"clients/accuracy_{part}" for part in ("mean", "std", "p10", "worst")), 0.5)
        path.write_text("".join(f"{json.dumps(json.loads(line) | spread)}\n" for line in path.read_text().splitlines()))
    captions = {name: picture.caption for name, picture in report(load([tmp_path])).figures.items()}
    of_curves = "mean over n = 2 seeds, with the 95 % t-interval as a band. Thin lines are seeds."
    last = "Test accuracy (%) after the last round, by"
    assert captions == {
        "curves_rounds": f"Test accuracy by round: {of_curves}",
        "curves_bytes": f"Test accuracy by bytes sent: {of_curves}",
        "sensitivity_alpha": f"{last} α: mean over seeds, with the 95 % t-interval as bars.",
        "heat_map": f"{last} learning rate η and α: mean over seeds ± half the 95 % t-interval; the colour is "
        "the mean.",
        "clients_accuracy": "Accuracy of the global model on clients after the last round that has it: mean, standard "
        "deviation, 10th percentile and worst over the clients, each a mean over seeds.",
        **{
            f"partition_{number}": f"Samples of each class on each client: α = {alpha:g}, seed 0. The largest bubble "
            "has 4. Class shares of a client against those of all, mean over clients: Jensen-Shannon distance 0.33 "
            "(0 to 1), earth mover's distance 0.60 (0 to 2, Zhao et al. 2018)."
            for number, alpha in enumerate((0.1, 1.0, 2.0), start=1)
        },
    }


@pytest.mark.parametrize(
    ("num_settings", "num_seeds", "names"),
    [(2, 3, set()), (3, 2, set()), (3, 3, {"profile"}), (5, 1, {"ranks"}), (6, 3, {"profile", "ranks"})],
)
def test_all_settings_are_in_one_figure_where_there_are_enough(tmp_path, num_settings, num_seeds, names):
    for number, (setting, gain, seed) in enumerate(product(range(num_settings), (0, 1, 2), range(num_seeds))):
        partitioner = {"_target_": "dirichlet", "alpha": 1.0 + setting}
        choices = {"strategy": ["fedavg", "fedprox", "scaffold"][gain]}
        last = 0.5 + setting / 100 + gain / 10 + seed / 1000
        make(tmp_path / f"{number}", seed=seed, choices=choices, rows=rows(0.1, last), partitioner=partitioner)
    found = report(load([tmp_path])).figures
    assert {"profile", "ranks"} & found.keys() == names
    if "ranks" in names:
        np.testing.assert_array_equal(found["ranks"].data["rank"], [3, 2, 1])
    if "profile" in names:
        assert found["profile"].data["y"][0] == 1
        assert found["profile"].data["y"][-1] == 0
    # A diverged run's cell has a mean over the others: its setting does not count.
    (path, *_) = tmp_path.glob("*/run.json")
    path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    again = report(load([tmp_path])).figures
    assert ("ranks" in again) == (num_settings > 5)


def test_confusions_of_seeds_are_added(tmp_path):
    for seed, counts in enumerate(("0,3,1\n1,0,0\n", "0,1,3\n1,0,0\n")):
        make(tmp_path / f"{seed}", seed=seed, rows=rows(0.5))
        (tmp_path / f"{seed}" / "confusion.csv").write_text(f"class,0,1\n{counts}")
    (cell,) = group_runs(load([tmp_path])).cells
    np.testing.assert_array_equal(confusion(cell), [[4, 4], [0, 0]])
    shares = report(load([tmp_path])).figures["confusion"].data["share"]
    np.testing.assert_array_equal(shares, [0.5, 0.5, np.nan, np.nan])


def test_confusions_of_another_number_of_classes_are_another_figure(tmp_path):
    for name, counts in {"two": "0,3,1\n1,0,0\n", "three": "0,3,1,0\n1,0,0,0\n2,0,0,5\n"}.items():
        make(tmp_path / name, dataset={"name": name}, rows=rows(0.5))
        (tmp_path / name / "confusion.csv").write_text(
            f"class,{','.join(map(str, range(counts.count(chr(10)))))}\n{counts}"
        )
    found = report(load([tmp_path])).figures
    assert {name: found[name].spec["panels"] for name in found if name.startswith("confusion")} == {
        "confusion_2": ["name = two"],
        "confusion_3": ["name = three"],
    }


def test_panels_of_all_arms_in_all_settings_are_a_grid_with_common_labels(tmp_path):
    for strategy, alpha in product(("fedavg", "scaffold"), (0.1, 1)):
        run = tmp_path / f"{strategy}_{alpha}"
        make(run, choices={"strategy": strategy}, partitioner={"_target_": "dirichlet", "alpha": alpha}, rows=rows(0.5))
        (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    picture = report(load([tmp_path])).figures["confusion"]
    assert picture.spec["grid"] == {"across": ["fedavg", "scaffold"], "down": ["α = 0.1", "α = 1"]}
    axes = picture.figure.axes
    assert [each.get_title() for each in axes] == ["fedavg", "scaffold", "", ""]
    assert [[text.get_text() for text in each.texts if "=" in text.get_text()] for each in axes] == [
        [],
        ["α = 0.1"],
        [],
        ["α = 1"],
    ]
    for alpha in (2, 4):  # more settings than arms: these stand below each other
        for strategy in ("fedavg", "scaffold"):
            run = tmp_path / f"{strategy}_{alpha}"
            partitioner = {"_target_": "dirichlet", "alpha": alpha}
            make(run, choices={"strategy": strategy}, partitioner=partitioner, rows=rows(0.5))
            (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    spec = report(load([tmp_path])).figures["confusion"].spec
    assert spec["grid"] == {"across": [f"α = {alpha}" for alpha in (0.1, 1, 2, 4)], "down": ["fedavg", "scaffold"]}
    assert spec["panels"][:5] == [*(f"fedavg, α = {alpha}" for alpha in (0.1, 1, 2, 4)), "scaffold, α = 0.1"]
    for path in tmp_path.glob("*_[24]"):
        shutil.rmtree(path)
    run = tmp_path / "scaffold_1"
    shutil.rmtree(run)
    picture = report(load([tmp_path])).figures["confusion"]
    assert picture.spec["grid"] is None
    assert picture.spec["panels"] == ["fedavg, α = 0.1", "scaffold, α = 0.1", "fedavg, α = 1"]


def test_panels_of_one_arm_in_many_settings_stand_side_by_side(tmp_path):
    for strategy, alpha in product(("fedavg", "scaffold"), range(1, 7)):
        run = tmp_path / f"{strategy}_{alpha}"
        make(run, choices={"strategy": strategy}, partitioner={"_target_": "dirichlet", "alpha": alpha}, rows=rows(0.5))
        (run / "confusion.csv").write_text("class,0,1\n0,3,1\n1,0,2\n")
    picture = report(load([tmp_path]), highlight=["fedavg"]).figures["confusion"]
    assert len(picture.spec["panels"]) == 6
    tops = {round(axes.get_window_extent().y1) for axes in picture.figure.axes}
    assert len(tops) == 2  # rows, of the three that fit in 6.3 inches


def test_each_class_has_its_accuracy_over_seeds(tmp_path):
    for seed, counts in enumerate(("0,3,1\n1,0,0\n", "0,1,3\n1,0,0\n")):
        make(tmp_path / f"{seed}", seed=seed, rows=rows(0.5))
        (tmp_path / f"{seed}" / "confusion.csv").write_text(f"class,0,1\n{counts}")
    data = report(load([tmp_path])).figures["class_accuracy"].data
    assert (data["row"], data["col"]) == (["fedavg"] * 2, ["0", "1"])
    np.testing.assert_array_equal(data["value"], [0.5, np.nan])  # of 3/4 and 1/4
    # Student's t with one degree of freedom is 12.706, and the standard error is 1/4.
    np.testing.assert_allclose(data["half_width"], [12.706 / 4, np.nan], rtol=1e-4)


def test_clients_have_trajectories_from_two_evaluations_on(tmp_path):
    make(tmp_path / "run", rows=rows(0.5, 0.6))
    lines = [
        {
            "round": number,
            "train": {"partition_id": [0]},
            "evaluate": {"partition_id": clients, "clients/accuracy": own},
        }
        for number, clients, own in ((1, [0, 1], [0.25, 0.75]), (2, [1], [0.5]))
    ]
    table = tmp_path / "run" / "clients.jsonl"
    table.write_text(f"{json.dumps(lines[0])}\n")
    assert "trajectories" not in report(load([tmp_path])).figures
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = report(load([tmp_path])).figures["trajectories"].data
    np.testing.assert_array_equal(data["client"], [np.nan, np.nan, 0, 0, 1, 1])
    np.testing.assert_array_equal(data["y"], [0.5, 0.5, 0.25, np.nan, 0.75, 0.5])
    np.testing.assert_allclose(data["low"][:2], [0.3, 0.5])


@pytest.mark.parametrize("text", ["", PARTITION.splitlines()[0], "x\n\n"])
def test_an_empty_partition_file_is_ignored(tmp_path, text):
    make(tmp_path / "run")
    (tmp_path / "run" / "partition.csv").write_text(text)
    with warnings.catch_warnings(action="error"):
        assert class_counts(tmp_path / "run") is None


def test_curves_use_finished_runs_and_spreads_the_last_evaluated_round(tmp_path):
    columns = [f"clients/accuracy_{part}" for part in ("mean", "std", "p10", "worst")]
    of_clients = [dict(zip(columns, values, strict=True)) for values in ([0.1] * 4, [0.5, 0.1, 0.3, 0.2], [None] * 4)]
    for seed, status in enumerate(("finished", "failed", "finished")):
        curve = [{**row, **more} for row, more in zip(rows(0.1, 0.2, 0.4 + seed / 10), of_clients, strict=True)]
        make(tmp_path / status / f"{seed}", seed=seed, status=status, rows=curve)
    (cell,) = group_runs(load([tmp_path])).cells
    assert [run.state for run in plotted_runs(cell)] == ["finished", "finished"]
    assert mean_curve(cell, "rounds", "eval/accuracy").mean[-1] == pytest.approx(0.5)
    spread = client_spread(cell, "clients/accuracy", "p10")
    assert (spread.mean, spread.std, spread.p10, spread.worst) == (0.5, 0.1, 0.3, 0.2)
    (cell,) = group_runs(load([tmp_path / "failed"])).cells
    assert not plotted_runs(cell)
    make(tmp_path / "failed" / "interrupted", seed=3, status="interrupted", rows=rows(0.1))
    (cell,) = group_runs(load([tmp_path / "failed"])).cells
    assert [run.state for run in plotted_runs(cell)] == ["interrupted"]
    make(tmp_path / "diverged", status="diverged", rows=rows(0.1), optimizer={"lr": 9})
    caption = report(load([tmp_path])).figures["curves_rounds"].caption
    assert caption.startswith("Test accuracy by round: mean over n = 2 seeds, with")
    caption = report(load([tmp_path / "failed", tmp_path / "diverged"])).figures["curves_rounds"].caption
    assert "by round: n = 1 seed (of runs under way where none is finished)." in caption
    assert caption.endswith(" No curve, as all runs failed, diverged or stalled: η = 9.")


@pytest.mark.parametrize(("first", "is_cut"), [(0.1, True), (0.5, False)])
def test_a_caption_says_where_the_axis_may_leave_out_the_start(tmp_path, first, is_cut):
    make(tmp_path / "run", rows=rows(first, *[0.5] * 39))  # 5 % are two rounds
    caption = report(load([tmp_path])).figures["curves_rounds"].caption
    assert caption.endswith(" The y axis may leave out the first 5 % of the way.") == is_cut


def test_a_heat_map_names_and_sorts_values_as_tables_do(tmp_path):
    labels = {"fedavg": "FedAvg", "scaffold": "SCAFFOLD"}
    for strategy, alpha in (("fedavg", 0.1), ("fedavg", 1), ("scaffold", 0.1), ("scaffold", 0.5), ("scaffold", 1)):
        partitioner = {"_target_": "dirichlet", "alpha": alpha}
        declared = {"server": {"_target_": strategy}, "declares": {"label": labels[strategy]}}
        run = tmp_path / f"{strategy}{alpha}"
        make(run, choices={"strategy": strategy}, rows=rows(0.5), partitioner=partitioner, strategy=declared)
    found = report(load([tmp_path]), labels=["strategy=fedavg=Plain"])
    data = found.figures["heat_map"].data
    assert [*dict.fromkeys(data["row"])] == ["Plain", "SCAFFOLD"] == [row[0].text for row in found.tables[1].rows]
    assert data["col"][:3] == ["0.1", "0.5", "1"]


def test_a_heat_map_has_a_strategy_with_several_numbers_once(tmp_path):
    for mu, seed in product((0.01, 0.1), (0, 1)):
        strategy = {"server": {"_target_": "FedProx", "mu": mu}, "declares": {"label": f"FedProx (μ = {mu})"}}
        make(tmp_path / f"{mu}{seed}", seed=seed, choices={"strategy": "fedprox"}, rows=rows(0.5), strategy=strategy)
    make(tmp_path / "avg", rows=rows(0.5), strategy={"server": {"_target_": "FedAvg", "mu": 0}})
    found = report(load([tmp_path]), grid=(["strategy"], ["mu"])).figures["heat_map"].data
    assert [*dict.fromkeys(found["row"])] == ["fedavg", "FedProx"]


@pytest.mark.parametrize(
    "arrangement",
    [{"facet": ["strategy"], "arms": ["partitioner.alpha"]}, {"arms": ["strategy", "partitioner.alpha"]}],
)
def test_differences_name_their_baseline_in_any_arrangement(tmp_path, arrangement):
    for strategy, alpha in product(("FedAvg", "SCAFFOLD"), (0.1, 1.0)):
        partitioner = {"_target_": "dirichlet", "alpha": alpha}
        declared = {"server": {"_target_": strategy}, "declares": {"label": strategy}}
        choices = {"strategy": strategy.lower()}
        run = tmp_path / f"{strategy}{alpha}"
        make(run, choices=choices, rows=rows(0.5), partitioner=partitioner, strategy=declared)
    found = report(load([tmp_path]), baseline="strategy=fedavg", **arrangement).figures["differences"]
    assert found.spec["x_label"] == "Test accuracy − FedAvg's (percentage points)"


def test_three_numbers_make_a_sensitivity(tmp_path):
    for number in range(3):
        make(tmp_path / f"{number}", optimizer={"lr": number}, model={"hidden": number % 2}, rows=rows(0.5))
    assert numeric_keys(group_runs(load([tmp_path])), 3) == ["optimizer.lr"]
