"""The table of columns: rows have what it says and nothing else, and it says which way each is better."""

import pytest

from fedresearch.errors import InputError
from fedresearch.experiment import selection
from fedresearch.experiment.experiment import Experiment
from fedresearch.runs.columns import COLUMNS, NEEDS, direction, expected_columns, is_share, larger_is_better

DIABETES = ["dataset=diabetes", "model=logistic", "partitioner=iid"]


def test_names_are_unique_and_needs_are_in_words():
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert {need for column in COLUMNS for need in column.needs} == NEEDS.keys()


@pytest.mark.parametrize(
    "options",
    [
        ["strategy=ditto"],
        ["federation.fraction_evaluate=0", "validation.fraction=0"],
        ["federation.nonfinite=drop"],
        ["federation.fraction_train=0.1"],
        DIABETES,
    ],
)
def test_rows_have_the_columns_of_the_table_where_it_says(run, options):
    words = ["federation.num_rounds=2", "federation.evaluate_every=2", "local.epochs=null", "local.steps=1"]
    result = run(*options, *words)
    config = result.experiment.config
    ahead = {
        "classes": config.dataset["declares"]["num_classes"] > 1,
        "evaluated": config.federation.fraction_evaluate > 0,
        "own_models": result.experiment.client_app.has_own_model,
        "dropped": config.federation.nonfinite == "drop",
    }
    missing = {
        need
        for need, holds in {
            "classes": ahead["classes"],
            "validation": ahead["evaluated"],
            "own models": ahead["own_models"],
            "drop": ahead["dropped"],
            "two updates": config.federation.fraction_train > 0.1,
        }.items()
        if not holds
    }
    unevaluated, evaluated = result.rows
    assert evaluated.keys() == {column.name for column in COLUMNS if not missing & {*column.needs}}
    missing |= {"evaluation", "validation"}
    assert unevaluated.keys() == {column.name for column in COLUMNS if not missing & {*column.needs}}
    assert {*expected_columns(**ahead)} == evaluated.keys() - {"model/sha256"} | {"update/cosine"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eval/accuracy", "up"),
        ("clients/accuracy", "up"),
        ("personal/accuracy_worst", "up"),
        ("clients/accuracy_std", "down"),  # of a spread, though of accuracies
        ("clients/loss_worst", "down"),
        ("time/round_s", "down"),
        ("update/cosine", "none"),
        ("clients/f1", "up"),
        ("train/occupancy_error", "down"),  # no accuracy, for its letters
        ("clients/head_loss/3", "down"),
        ("clients/lossless", "up"),
    ],
)
def test_which_way_is_better(name, expected):
    assert direction(name) == expected
    assert larger_is_better(name) == (expected == "up")


def test_shares_are_known_by_declaration_and_not_by_letters():
    assert is_share("eval/accuracy")
    assert is_share("clients/accuracy_std")
    assert not any(map(is_share, ("eval/loss", "update/cosine", "clients/account", "clients/f1")))


def test_a_column_that_is_good_neither_way_has_no_best_round(compose):
    experiment = Experiment(*compose("checkpoint.best=update/norm", "tracker=none"))
    with pytest.raises(
        InputError, match=r"^checkpoint.best=update/norm has no .*; try checkpoint.best=clients/accuracy$"
    ):
        selection.check_selection(experiment)


@pytest.mark.parametrize(("name", "way"), [("clients/gini", "largest"), ("clients/gini_error", "smallest")])
def test_the_way_of_a_strategys_own_column_is_printed(compose, caplog, monkeypatch, name, way):
    monkeypatch.setattr(selection, "_measures_more", lambda _: True)
    selection.check_selection(Experiment(*compose(f"checkpoint.best={name}", "tracker=none")))
    assert f"checkpoint.best={name} keeps the round with the {way} value" in caplog.text
