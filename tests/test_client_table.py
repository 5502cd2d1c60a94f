"""The clients' table: what it says of each client, that every hardware and a resume write the same, and its reading."""

import shutil

import numpy as np
import pandas as pd
import pytest

from fedresearch import load_clients
from fedresearch.errors import InputError
from fedresearch.local.train import LocalTrainer
from fedresearch.runs.record import read_record, read_rows
from fedresearch.study.report.cells import group_runs
from fedresearch.study.report.load import load
from fedresearch.study.report.plot_data import client_quantiles
from tests.directories import SCAFFOLD, conduct, killed, outcome
from tests.records import make, report


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    """A run of four rounds, of which the second and the fourth are evaluated."""
    return conduct(tmp_path_factory.mktemp("past") / "run", "federation.evaluate_every=2", "strategy=ditto")


def test_the_table_adds_up_to_the_rows(past):
    table = load_clients(past)
    assert not table.duplicated(["round", "partition_id"]).any()
    for row in read_rows(past)[1:]:
        own = table[table["round"] == row["round"]]
        train, evaluate = own[own["num_examples"].notna()], own[own["num_validation"].notna()]
        assert len(train) == row["clients/sampled"]
        assert len(evaluate) == row.get("clients/evaluated", 0)
        assert not train["failed"].any()
        for name in ("comm/bytes_down", "comm/bytes_up", "local/steps"):
            assert train[name].sum() == row[name]
        assert np.average(train["train/loss"], weights=train["num_examples"]) == pytest.approx(row["train/loss"])
        for name in ("clients/loss", "clients/accuracy", "personal/loss", "personal/accuracy") * len(evaluate):
            assert evaluate[name].mean() == pytest.approx(row[f"{name}_mean"])
            assert np.average(evaluate[name], weights=evaluate["num_validation"]) == pytest.approx(row[name])
        assert train["update/cosine"].between(-1, 1).all()
    sizes = pd.read_csv(past / "partition.csv")["num_train"]
    trained = table[table["num_examples"].notna()]
    assert (trained["num_examples"].to_numpy() == sizes[trained["partition_id"]].to_numpy()).all()


def test_a_client_alone_makes_the_mean(tmp_path):
    run = conduct(tmp_path / "run", "federation.fraction_train=0.2")
    table = load_clients(run).dropna(subset="update/norm")
    np.testing.assert_allclose(table["update/norm"], [row["update/norm"] for row in read_rows(run)[1:]], rtol=1e-6)
    np.testing.assert_allclose(table["update/cosine"], 1, rtol=1e-12)


def test_workers_write_the_same_bytes(tmp_path, whole):
    run = conduct(tmp_path / "run", *SCAFFOLD, "hardware=workers")
    assert (run / "clients.jsonl").read_bytes() == (whole / "clients.jsonl").read_bytes()


@pytest.mark.parametrize("torn", [b"", b'{"round": 5, "train"', b"\0\0\n"])
@pytest.mark.parametrize("checkpoint", [0, 2])
def test_a_resume_cuts_the_table_after_the_checkpoint(tmp_path, whole, checkpoint, torn):
    resumed = killed(whole, tmp_path / "run", checkpoint=checkpoint)
    with (resumed / "clients.jsonl").open("ab") as file:
        file.write(torn)
    assert load_clients(resumed).equals(load_clients(whole))  # as far as it is
    conduct(resumed, *SCAFFOLD)
    assert outcome(resumed) == outcome(whole)
    assert read_record(resumed)["clients_sha256"] == read_record(whole)["clients_sha256"]


def test_a_client_that_fails_has_no_numbers(tmp_path, monkeypatch):
    train = LocalTrainer.__call__

    def fail_once(trainer, task):
        if len(failures) == 0 and len(task.y) > 2:  # not in the step before the run
            failures.append(len(task.y))
            raise ArithmeticError("not today")
        return train(trainer, task)

    failures: list[int] = []
    monkeypatch.setattr(LocalTrainer, "__call__", fail_once)
    run = conduct(tmp_path / "run", "federation.max_failures=1", "federation.fraction_evaluate=0")
    table = load_clients(run)
    (failed,) = table[table["failed"] == 1].to_dict("records")
    assert (failed["round"], failed["comm/bytes_up"]) == (1, 0)
    assert failed["comm/bytes_down"] > 0
    assert np.isnan([failed[name] for name in ("num_examples", "train/loss", "update/norm", "update/cosine")]).all()
    assert table[table["failed"] == 0].notna().all().all()
    assert len(table) == 4 * 3


def test_the_table_can_be_left_out_and_changes_no_number(tmp_path, whole):
    run = conduct(tmp_path / "run", *SCAFFOLD, "clients_table=false")
    assert read_record(run)["digest"] == read_record(whole)["digest"]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"holds no clients.jsonl: a run writes it unless clients_table=false$"):
        load_clients(run)
    later = killed(whole, tmp_path / "later", checkpoint=2)
    conduct(later, *SCAFFOLD, "clients_table=false")
    assert load_clients(later)["round"].max() == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda content: content.replace(b'"failed":[false', b'"failed":[true', 1), "was edited: its content is not"),
        (
            lambda content: content.replace(b'{"round":2', b'{"round":1', 1),
            "damaged: line 2 is not the line of a round",
        ),
        (lambda content: b"[]\n" + content, "damaged: line 1 is not the line of a round; restore it, or remove it"),
    ],
)
def test_a_changed_table_is_rejected(tmp_path, whole, change, line):
    directory = shutil.copytree(whole, tmp_path / "run")
    (directory / "clients.jsonl").write_bytes(change((directory / "clients.jsonl").read_bytes()))
    with pytest.raises(InputError, match=line):
        load_clients(directory)


@pytest.mark.parametrize(
    "train",
    [
        "{}",
        "[1]",
        '{"partition_id": ["x"]}',
        '{"partition_id": [1], "x": [[1], [2]]}',
        '{"partition_id": [1], "x": []}',
    ],
)
def test_a_line_that_no_run_writes_is_reported(tmp_path, train):
    make(tmp_path / "run")
    (tmp_path / "run" / "clients.jsonl").write_text(f'{{"round": 1, "train": {train}}}\n')
    with pytest.raises(InputError, match=r"clients.jsonl is damaged"):
        load_clients(tmp_path / "run")


def test_a_report_draws_the_clients_last_evaluation_sorted(tmp_path, past):
    runs = load([past])
    (cell,) = group_runs(runs).cells
    table = load_clients(past)
    last = np.sort(table[table["round"] == 4]["clients/accuracy"].dropna())
    curve = client_quantiles(cell, "clients/accuracy")
    np.testing.assert_allclose(curve.mean[[0, 25, 50, 75, 100]], last)  # of five clients
    assert client_quantiles(cell, "clients/other") is None
    assert "clients" in report(runs, metric="eval/accuracy").figures
