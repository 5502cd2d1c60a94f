"""What a run shows of its final model and of its best round."""

import csv

import pytest

from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.selection import BestRound
from fedresearch.runs.record import read_rows
from tests.directories import conduct


def test_the_confusion_matrix_is_of_the_test_split_and_of_the_last_model(tmp_path):
    conduct(tmp_path / "run", "federation.num_rounds=1")
    header, *table = csv.reader((tmp_path / "run" / "confusion.csv").read_text().splitlines())
    counts = [[int(count) for count in row[1:]] for row in table]
    assert header == ["class", *map(str, range(10))]
    assert [row[0] for row in table] == header[1:]
    right, all_ = sum(row[label] for label, row in enumerate(counts)), sum(map(sum, counts))
    assert all_ == 360  # a fifth of the 1,797 digits
    assert read_rows(tmp_path / "run")[-1]["eval/accuracy"] == right / all_


def test_no_confusion_matrix_of_a_regression_or_of_a_model_whose_head_nobody_trains(compose):
    for words in (["dataset=diabetes", "partitioner=iid", "model=logistic"], ["strategy=fedper"]):
        experiment = Experiment(*compose("tracker=none", *words))
        assert experiment.confusion(experiment.initial_arrays) is None


@pytest.mark.parametrize(
    ("words", "by", "chosen"),
    [
        ([], "clients/accuracy", 1),
        (["checkpoint.best=clients/loss"], "clients/loss", 2),
        (["federation.fraction_evaluate=0"], "", None),
    ],
)
def test_the_best_round_is_the_first_by_the_declared_column_or_by_validation(words, by, chosen, compose):
    experiment = Experiment(*compose("tracker=none", *words))
    numbers = [(0, 0.9, 0.1), (1, 0.5, 2.0), (2, 0.5, 1.0), (3, float("nan"), float("nan"))]
    rows = [{"round": i, "eval/accuracy": i / 8, "clients/accuracy": a, "clients/loss": b} for i, a, b in numbers]
    if not by:
        rows = [{name: row[name] for name in ("round", "eval/accuracy")} for row in rows]
    summary = BestRound(experiment, rows).summary
    assert (summary.get("best/by", ""), summary.get("best/round")) == (by, chosen)
    if chosen:
        assert summary["best/eval/accuracy"] == chosen / 8
