"""The table of columns: rows have what it says and nothing else, and it says which way each is better."""

import pytest

from fedresearch.errors import InputError
from fedresearch.experiment import selection
from fedresearch.experiment.experiment import Experiment
from fedresearch.runs.columns import COLUMNS, NEEDS, declared, direction, evaluated, is_share, larger_is_better

UP = {"direction": "up", "unit": "share, 0 to 1"}
DECLARED = declared([*evaluated("accuracy", UP), *evaluated("head", {"direction": "none"})])
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
        ["federation.evaluate_train=true"],
        ["federation.fraction_train=0.1"],
        DIABETES,
    ],
)
def test_rows_have_the_columns_of_the_table_where_it_says(run, options):
    words = ["federation.num_rounds=2", "federation.evaluate_every=2", "local.epochs=null", "local.steps=1"]
    result = run(*options, *words)
    config = result.experiment.config
    columns = (*COLUMNS, *evaluated("r2" if options == DIABETES else "accuracy", UP))
    missing = {
        need
        for need, holds in {
            "validation": config.federation.fraction_evaluate > 0,
            "own models": result.experiment.client_app.has_own_model,
            "drop": config.federation.nonfinite == "drop",
            "train evaluation": config.federation.evaluate_train,
            "two updates": config.federation.fraction_train > 0.1,
        }.items()
        if not holds
    }
    before, last = result.rows
    assert last.keys() == {column.name for column in columns if not missing & {*column.needs}}
    missing |= {"evaluation", "validation", "train evaluation"}
    assert before.keys() == {column.name for column in columns if not missing & {*column.needs}}
    assert result.experiment.columns.keys() == last.keys() - {"model/sha256"} | {"update/cosine"}


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
        ("eval/head", "none"),
        ("clients/head_std", "down"),
        ("eval/head/3", "none"),  # of a list
        ("train/occupancy_error", "down"),  # no accuracy, for its letters
        ("clients/head_loss/3", "down"),
        ("clients/lossless", "up"),
    ],
)
def test_which_way_is_better(name, expected):
    assert direction(name, DECLARED) == expected
    assert larger_is_better(name, DECLARED) == (expected == "up")


def test_shares_are_known_by_declaration_and_not_by_letters():
    assert is_share("eval/accuracy", DECLARED)
    assert is_share("clients/accuracy_std", DECLARED)
    assert not any(is_share(name, DECLARED) for name in ("eval/loss", "update/cosine", "clients/account", "clients/f1"))


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
