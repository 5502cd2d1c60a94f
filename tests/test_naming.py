"""What trackers call a run, and the short columns of its config."""

from dataclasses import asdict

import pytest

from fedresearch.config import digest
from fedresearch.experiment.naming import group_name, run_label, short_columns, tags


@pytest.fixture
def record(compose):
    """Return a function from overrides to the fields of a record that names are made of."""

    def record_(*words):
        config, choices = compose(*words)
        cell = digest(config, seeds=False)
        described = {"config": asdict(config), "choices": choices, "overrides": [*words]}
        return {**described, "cell": cell, "digest": digest(config)}

    return record_


FEDPROX = ["strategy=fedprox", "strategy.server.proximal_mu=0.01", "partitioner.alpha=0.1"]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (FEDPROX, "FedProx (μ = 0.01), Dir(α = 0.1)"),
        ([*reversed(FEDPROX), "seed=3", "hardware=workers", "tracker=none"], "FedProx (μ = 0.01), Dir(α = 0.1)"),
        ([], "FedAvg, Dir(α = 0.5)"),
        (["optimizer.lr=0.05", "partitioner=iid", "local.epochs=2"], "FedAvg, IID, E = 2, SGD, η = 0.05"),
        (["channel=[topk]", "channel.topk.share=0.1"], "FedAvg, Dir(α = 0.5), [topk], share = 0.1"),
        (["experiment=reddi2021_server_optimizers"], None),
    ],
)
def test_a_run_is_called_as_papers_do_by_what_was_typed(words, label, record):
    shown = record(*words)
    if label:
        assert run_label(shown) == label
    else:
        assert run_label(shown).endswith("reddi2021_server_optimizers")
    assert group_name(shown) == f"{run_label(shown)} #{shown['cell'][:4]}"


def test_seeds_share_a_group_which_cells_never_do_whatever_their_labels(record):
    first, second, other = (record(*FEDPROX, word) for word in ("seed=0", "seed=1", "metrics=[auc]"))
    assert group_name(first) == group_name(second) != group_name(other)
    assert run_label(first) == run_label(other)
    long = record(*FEDPROX, f"model.widths={[*range(100, 140)]}".replace(" ", ""))
    assert len(group_name(long)) == 128
    assert group_name(long).endswith(f" #{long['cell'][:4]}")


def test_tags_have_the_numbers_too(record):
    options = ["fedprox", "dirichlet", "digits", "mlp"]
    assert tags(record(*FEDPROX)) == [*options, "FedProx (μ = 0.01)", "Dir(α = 0.1)"]


def test_short_columns(record):
    shown = record(*FEDPROX, "seed=3", "channel=[clip]", "model.widths=[8]")
    columns = short_columns(shown)
    named = {"strategy": "fedprox", "dataset": "digits", "channel": "[clip]", "seed": 3, "cell": shown["cell"]}
    numbers = {"alpha": 0.1, "mu": 0.01, "lr": 0.1, "epochs": 5, "batch_size": 10, "num_rounds": 20, "widths": "[8]"}
    assert {name: columns.get(name) for name in named | numbers} == named | numbers
    assert all(value is None or isinstance(value, bool | int | float | str) for value in columns.values())


def test_alpha_is_the_partitioners(record):
    columns = short_columns(record("strategy=feddyn", "strategy.server.alpha=0.02"))
    assert (columns["alpha"], columns["strategy_alpha"]) == (0.5, 0.02)
