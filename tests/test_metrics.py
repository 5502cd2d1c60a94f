"""Metrics: their numbers by hand, how clients are combined where one is undefined, and what reads their columns."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from flwr.app import MetricRecord
from safetensors import safe_open

from fedresearch.errors import InputError
from fedresearch.experiment.advice import advise
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.selection import check_selection
from fedresearch.federation.measures import defined_means, measure_clients
from fedresearch.local import metrics
from fedresearch.local.objective import evaluate
from fedresearch.runs.record import read_record
from fedresearch.study.report.load import load
from fedresearch.study.sweep.job import objective
from fedresearch.study.tune import choose
from tests import records
from tests.directories import conduct, killed, outcome, rows_of

CHOSEN = ["metrics=[accuracy,macro_f1,per_class]"]
# Of class 0, 1 of 2 samples is right; of class 1, 3 of 4, and the other is taken for a 2; no sample is a 2.
TARGETS = torch.tensor([0, 0, 1, 1, 1, 1])
OUTPUTS = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 1, 2]), 3).float()


def test_each_metric_by_hand():
    assert metrics.accuracy(OUTPUTS, TARGETS) == 4 / 6
    assert metrics.per_class(OUTPUTS, TARGETS).tolist() == [1 / 2, 3 / 4, pytest.approx(math.nan, nan_ok=True)]
    assert metrics.balanced_accuracy(OUTPUTS, TARGETS) == 5 / 8
    # 2 tp / (targets + predictions): 2/3, 6/8 and 0/1.
    assert metrics.macro_f1(OUTPUTS, TARGETS) == pytest.approx((2 / 3 + 3 / 4 + 0) / 3)
    # Uniform outputs over four classes.
    assert metrics.perplexity(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 3])) == pytest.approx(4)


def test_the_area_counts_pairs_and_ties_by_half():
    """Two classes, the second's logits 1, 2 and 2 for its own samples and 0 and 2 for others: 4 of 6 pairs."""
    outputs = torch.tensor([[0.0, 1], [0, 2], [0, 2], [0, 0], [0, 2]])
    assert metrics.auc(outputs, torch.tensor([1, 1, 1, 0, 0])) == pytest.approx(4 / 6)


def test_r2_is_1_for_the_targets_0_for_their_mean_and_a_mean_over_dimensions():
    y = torch.tensor([[1.0, 2], [2, 4], [6, 0]])
    assert metrics.r2(y, y) == 1
    mean = y.mean(dim=0).expand_as(y)
    assert metrics.r2(mean, y) == pytest.approx(0)
    assert metrics.r2(torch.stack([y[:, 0], mean[:, 1]], dim=1), y) == pytest.approx(0.5)


def test_what_is_undefined_is_nan():
    alone = OUTPUTS[:1], TARGETS[:1]
    assert all(math.isnan(value) for value in (metrics.auc(*alone), metrics.r2(torch.ones(1, 1), torch.ones(1, 1))))
    assert math.isnan(metrics.r2(torch.ones(3, 1), torch.full((3, 1), 2.0)))


@pytest.mark.parametrize("seed", range(20))
def test_scikit_learn_has_the_same_numbers(seed):
    """On few samples with equal outputs, of fewer classes than the model knows."""
    random = np.random.default_rng(seed)
    num_samples, num_classes, num_present = random.integers([2, 2, 1], [30, 7, 5])
    y = random.integers(0, min(num_classes, num_present), num_samples)
    outputs = torch.tensor(random.integers(-3, 4, (num_samples, num_classes))).float()
    targets, predicted = torch.tensor(y), outputs.argmax(dim=1).numpy()
    assert metrics.accuracy(outputs, targets) == sklearn.metrics.accuracy_score(y, predicted)
    f1 = sklearn.metrics.f1_score(y, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(outputs, targets) == pytest.approx(f1)
    recalls = sklearn.metrics.recall_score(y, predicted, labels=np.unique(y), average=None)
    assert metrics.per_class(outputs, targets)[np.unique(y)].tolist() == pytest.approx(recalls)
    assert metrics.balanced_accuracy(outputs, targets) == pytest.approx(recalls.mean())
    scores = outputs.double().softmax(dim=1).numpy()
    areas = [sklearn.metrics.roc_auc_score(y == k, scores[:, k]) for k in np.unique(y) if not (y == k).all()]
    assert metrics.auc(outputs, targets) == pytest.approx(np.mean(areas) if areas else np.nan, nan_ok=True)


def test_a_client_on_which_a_metric_is_undefined_does_not_count():
    per_client = [
        MetricRecord({"num-examples": n, "eval_loss": 1.0, "f1": f1, "of/0": of_0, "of/1": math.nan, "personal/f1": f1})
        for n, f1, of_0 in ((1, 0.4, 0.1), (2, math.nan, 0.2), (3, 0.8, 0.3))
    ]
    for record in per_client:
        record["personal/loss"] = 1.0
    directions = {"f1": "up", "of/0": "up", "of/1": "up"}
    row = measure_clients(per_client, directions)
    for scope in ("clients", "personal"):
        found = [row[f"{scope}/f1_{part}"] for part in ("mean", "std", "p10", "worst")]
        assert found == pytest.approx([0.6, 0.2, 0.44, 0.4])
    assert not any("of/" in name for name in row)
    # of/0 is defined on all clients, and the strategy's; of/1 on none.
    means = {f"{scope}/f1": pytest.approx((1 * 0.4 + 3 * 0.8) / 4) for scope in ("clients", "personal")}
    assert defined_means(per_client, directions, "num-examples") == means


@pytest.mark.parametrize(
    ("direction", "parts"),
    [("up", {"mean", "std", "p10", "worst"}), ("down", {"mean", "std", "p90", "worst"}), ("none", {"mean", "std"})],
)
def test_the_direction_decides_which_client_is_worst(direction, parts):
    per_client = [MetricRecord({"m": value}) for value in (0.0, 1.0)]
    row = measure_clients(per_client, {"m": direction})
    assert {name.removeprefix("clients/m_") for name in row} - {"clients/evaluated"} == parts
    assert row.get("clients/m_worst") == {"up": 0.0, "down": 1.0, "none": None}[direction]


def predictions(experiment, x):
    experiment.model.eval()
    with torch.no_grad():
        return experiment.model(x).argmax(dim=1).numpy()


def test_a_run_measures_what_was_chosen_and_nothing_else_changes(run):
    """The last row from the final model and scikit-learn; few samples, so that clients lack classes."""
    options = ["federation.num_rounds=2", "partitioner=pathological", "federation.num_supernodes=5"]
    result, plain = run(*options, *CHOSEN), run(*options)
    rows, plain_rows = result.numbers(), plain.numbers()
    bytes_up = "comm/evaluate_bytes_up"
    assert [
        {key: row[key] for key in usual if key != bytes_up} for row, usual in zip(rows, plain_rows, strict=True)
    ] == [{key: value for key, value in row.items() if key != bytes_up} for row in plain_rows]
    experiment, last = result.experiment, rows[-1]
    data = experiment.data
    y = data.test_y.numpy()
    predicted = predictions(experiment, data.test_x)
    assert last["eval/macro_f1"] == pytest.approx(sklearn.metrics.f1_score(y, predicted, average="macro"))
    recalls = sklearn.metrics.recall_score(y, predicted, average=None)
    assert [last[f"eval/per_class/{k}"] for k in range(10)] == pytest.approx(recalls)
    clients = [data.validation_samples(i) for i in range(5)]
    sizes, shares, scores = [len(y) for _, y in clients], [], []
    for x, y in clients:
        predicted, known = predictions(experiment, x), y.numpy()
        shares.append([(predicted == k)[known == k].mean() if (known == k).any() else np.nan for k in range(10)])
        labels = np.union1d(known, predicted)
        scores.append(sklearn.metrics.f1_score(known, predicted, labels=labels, average="macro", zero_division=0))
    shares = np.array(shares)
    assert np.isnan(shares).any()
    for k in range(10):
        held = [(share, size) for share, size in zip(shares[:, k], sizes, strict=True) if not np.isnan(share)]
        mean = sum(share * size for share, size in held) / sum(size for _, size in held) if held else np.nan
        assert last[f"clients/per_class/{k}"] == pytest.approx(mean, nan_ok=True)
    assert last["clients/macro_f1"] == pytest.approx(np.average(scores, weights=sizes))
    assert last["clients/macro_f1_worst"] == pytest.approx(min(scores))


def test_workers_give_the_same_bits(run):
    options = ["federation.num_rounds=2", "strategy=fedrep", "local.epochs=1", *CHOSEN]
    assert run(*options, "hardware=workers").numbers() == run(*options).numbers()


def test_batched_clients_give_the_same_numbers_up_to_rounding(run):
    options = ["federation.num_rounds=2", "local.epochs=1", "dtype=float64", *CHOSEN]
    for row, expected in zip(run(*options, "hardware=batched").numbers(), run(*options).numbers(), strict=True):
        assert row.keys() == expected.keys()
        assert [row[name] for name in row if "macro_f1" in name or "per_class" in name] == pytest.approx(
            [expected[name] for name in row if "macro_f1" in name or "per_class" in name]
        )


def test_a_resumed_run_gives_the_same_bits_and_the_best_round_is_by_a_metric(tmp_path):
    options = [*CHOSEN, "checkpoint.best=clients/macro_f1_worst"]
    whole = conduct(tmp_path / "whole", *options)
    resumed = conduct(killed(whole, tmp_path / "resumed", checkpoint=2), *options)
    assert outcome(resumed) == outcome(whole)
    best = max(rows_of(whole)[1:], key=lambda row: row["clients/macro_f1_worst"])
    with safe_open(whole / "best.safetensors", "np") as file:
        assert file.metadata()["round"] == str(best["round"])
    columns = read_record(whole)["columns"]
    assert columns["clients/macro_f1_worst"]["direction"] == "up"
    assert columns["eval/per_class/9"]["unit"] == "share, 0 to 1"
    assert {name for name in rows_of(whole)[-1] if "macro" in name or "per_class" in name} <= columns.keys()


ERROR = {"direction": "down", "unit": "", "definition": "x"}


def runs_with_an_error(folder):
    """Two runs of each of two rates; the larger rate has the smaller ``off``, a metric that is better so."""
    for seed in (0, 1):
        for lr, off in ((0.1, 3.0), (0.2, 2.0)):
            values = [off + 1, off, off + 2]
            rows = [{"eval/off": value, "clients/off": value, "eval/loss": 1.0, "clients/loss": lr} for value in values]
            columns = {name: {**ERROR, "weighting": "none"} for name in ("eval/off", "clients/off")}
            sections = {"optimizer": {"lr": lr, "schedule": {}}, "metrics": {"off": {}}}
            make = {"seed": seed, "rows": rows, "record": {"columns": columns}, **sections}
            records.make(folder / f"{lr}_{seed}", **make)
    return load([folder])


def test_readers_go_by_what_a_run_declares(tmp_path):
    runs = runs_with_an_error(tmp_path)
    chosen, _ = choose(runs, "optimizer.lr", "last")
    assert (chosen["selection"], chosen["cells"][0]["value"]) == ("clients/off after the last round", 0.2)
    result = records.report(runs, select="best_val", targets=[2.5])
    assert result.question.metric == "eval/off"
    assert [run.column("eval/off")[1] for run in runs] == [result.selected[run.directory] for run in runs]
    (table,) = [table for table in result.tables if table.id.startswith("target")]
    assert [record["reached"] for record in table.records] == [0, 2]
    assert "first falls to 2.5" in table.caption
    assert objective(runs[0].directory, 99) == 5.0


@pytest.mark.parametrize("returned", ["high", {"a": 1}, None])
def test_a_metric_must_return_numbers(returned):
    outputs, targets = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match="the metric mine must return a number or a list of numbers, got "):
        evaluate(torch.nn.Identity(), outputs, targets, metrics={"mine": lambda outputs, targets: returned})


def test_a_metric_that_does_not_fit_the_targets_is_left_out_with_a_line(compose, caplog):
    experiment = Experiment(*compose("metrics=[r2,accuracy]", "tracker=none"))
    advise(experiment)
    assert "r2 is not measured: it needs numbers as targets, and dataset=digits has none; try metrics=" in caplog.text
    assert experiment.measured == ["accuracy"]
    diabetes = ["dataset=diabetes", "model=logistic", "partitioner=iid", "tracker=none"]
    assert Experiment(*compose(*diabetes)).measured == ["r2"]
    caplog.clear()
    assert Experiment(*compose(*diabetes, "metrics=accuracy")).measured == []


def test_an_unknown_column_is_refused_with_those_there_are(compose):
    check_selection(Experiment(*compose("checkpoint.best=eval/per_class/9", *CHOSEN, "tracker=none")))
    experiment = Experiment(*compose("checkpoint.best=eval/per_class/10", *CHOSEN, "tracker=none"))
    with pytest.raises(
        InputError, match=r"eval/per_class/10 is not a column of this run; try checkpoint.best=eval/per_c"
    ):
        check_selection(experiment)


OWN = """
def broken(outputs, targets):
    return outputs.no_such_thing
"""


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("mine: {_target_: own.broken}", r"metrics\.mine\.declares is missing; its option's YAML must give it"),
        (
            "mine: {_target_: own.broken, declares: {direction: left}}",
            r"metrics\.mine\.declares\.direction must be up or down or none, got left",
        ),
        (
            "mine: {_target_: own.broken, declares: {direction: up, uint: s}}",
            r"unknown key metrics\.mine\.declares\.uint, which nothing reads; it has direction, targets, unit",
        ),
        (
            "loss: {_target_: own.broken, declares: {direction: up}}",
            r"is none of loss, eval_loss, num-examples, uniform, got loss",
        ),
        ("mine: {_target_: own.brokn, declares: {direction: up}}", r"metrics=mine: own .*has no brokn; did you mean"),
        ("mine: {_target_: own.broken, declares: {direction: up}}", r"metrics=mine: .*no_such_thing"),
    ],
)
def test_mistakes_in_a_metric_are_one_line(compose, tmp_path, monkeypatch, yaml, message):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.yaml").write_text(yaml)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        _ = Experiment(*compose("metrics=[mine]", "tracker=none", config_dir=tmp_path)).measured


def test_the_target_is_an_accuracy(compose):
    with pytest.raises(
        InputError, match=r"target_accuracy=0\.9 needs accuracy among the metrics, got metrics=\[macro_f1"
    ):
        compose("federation.target_accuracy=0.9", "metrics=macro_f1")


def test_an_outsiders_dataset_chooses_its_metrics_unless_others_are_typed(compose, tmp_path):
    (tmp_path / "dataset").mkdir()
    text = "defaults:\n  - override /metrics@_global_.metrics: [r2]\n_target_: sklearn.datasets.load_diabetes\n"
    text += "declares: {input: vector, input_shape: [10], num_classes: 1, columns: []}\n"
    (tmp_path / "dataset" / "sugar.yaml").write_text(text)
    words = ["dataset=sugar", "partitioner=iid", "tracker=none"]
    config, choices = compose(*words, config_dir=tmp_path)
    assert ([*config.metrics], choices["metrics"]) == (["r2"], "[r2]")
    assert [*compose(*words, "metrics=[]", config_dir=tmp_path)[0].metrics] == []
