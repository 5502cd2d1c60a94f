"""What figures, tables and trackers call things."""

from pathlib import Path

import pytest
import yaml

from fedresearch.config.schema import digest
from fedresearch.runs.labels import column_label, declared_labels, experiment_label, key_symbol, key_title

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = {"strategy": "FedProx (μ = 0.01)", "partitioner": "Dir(α = 0.1)"}


@pytest.mark.parametrize("group", ["dataset", "partitioner", "model", "optimizer", "strategy", "metrics"])
def test_every_option_has_a_label_of_its_own(group):
    labels = {}
    for path in sorted((CONF / group).glob("[a-z]*.yaml")):
        node = yaml.safe_load(path.read_text())
        node = node.get(group, node) if group != "metrics" else node[path.stem]
        labels[path.stem] = node["declares"]["label"]
    alike = {"shard", "pathological_mcmahan"}  # which is a shard with another number of shards
    told = [label for name, label in labels.items() if name not in alike]
    assert len({*told}) == len(told)


def test_a_label_is_resolved_and_counts_in_no_digest(compose):
    (config, _), (named, _) = (
        compose("strategy=fedprox", "strategy.server.proximal_mu=1.0", "partitioner.alpha=0.1", *words)
        for words in ([], ["strategy.declares.label=Ours"])
    )
    labels = declared_labels(vars(config))
    assert (labels["strategy"], labels["partitioner"]) == ("FedProx (μ = 1)", "Dir(α = 0.1)")
    assert declared_labels(vars(named))["strategy"] == "Ours"
    assert digest(config) == digest(named)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"strategy": "fedprox", "strategy.server.proximal_mu": 0.01, "local.epochs": 5}, "FedProx (μ = 0.01), E = 5"),
        ({"strategy.server.proximal_mu": 0.01, "partitioner.alpha": 0.1}, "FedProx (μ = 0.01), Dir(α = 0.1)"),
        ({"partitioner.min_partition_size": 10}, "Dir(α = 0.1), min partition size = 10"),
        ({"model": "own", "model.widths": [8], "optimizer.lr": 0.05}, "own, widths = [8], η = 0.05"),
        ({"strategy": "fedavg", "local.epochs": None}, "FedProx (μ = 0.01), E = null"),
    ],
)
def test_an_experiment_is_called_as_papers_do(values, label):
    assert experiment_label(values, OPTIONS) == label


def test_typed_names_replace_labels_and_symbols():
    names = {"strategy=fedprox": "Ours", "local.epochs": "epochs", "optimizer.lr=0.1": "large rate"}
    values = {"strategy": "fedprox", "strategy.server.proximal_mu": 0.01, "local.epochs": 5, "optimizer.lr": 0.1}
    assert experiment_label(values, OPTIONS, names) == "Ours, μ = 0.01, epochs = 5, large rate"


def test_columns_and_keys_have_titles():
    assert column_label("eval/accuracy", {"eval/accuracy": {"unit": "share, 0 to 1"}}) == "Test accuracy (%)"
    assert column_label("clients/macro_f1_worst", {}, {"macro_f1": "macro F1"}) == "Client macro F1, worst"
    assert column_label("eval/per_class/3", {}, {"per_class": "accuracy by class"}) == "Test accuracy by class 3"
    assert column_label("eval/loss", {}, {}, {"eval/loss": "NLL"}) == "NLL"


@pytest.mark.parametrize(("text", "label"), [("Top-1", "Top-1 (%)"), ("Top-1 (in %)", "Top-1 (in %)")])
def test_a_typed_label_of_a_share_keeps_its_unit(text, label):
    shares = {"eval/accuracy": {"unit": "share, 0 to 1"}}
    assert column_label("eval/accuracy", shares, {}, {"eval/accuracy": text}) == label
    titles = [key_title(key) for key in ("optimizer.lr", "strategy.server.proximal_mu", "model.widths")]
    assert titles == ["Learning rate η", "μ", "Widths"]
    assert key_symbol("strategy.client.local_rounds") == "local rounds"
