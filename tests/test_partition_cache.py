"""Partitions of earlier runs: the same rows, from fewer imports."""

import numpy as np
import pytest
import torch

from fedresearch.data import partition_cache
from fedresearch.data.partition_cache import CachedRows
from fedresearch.data.source import Samples
from fedresearch.experiment import loading
from fedresearch.experiment.experiment import Experiment
from tests.damages import without_a_size

SAMPLES = Samples(torch.zeros(6, 1), torch.tensor([0, 1, 2, 0, 1, 2]))
ROWS = [np.array([5, 0]), np.array([], np.int64), np.array([3])]


@pytest.fixture
def partition(compose, tmp_path):
    """Return a function from overrides to the clients' rows, and to whether they were known."""

    def partition_(*overrides):
        entries = {*tmp_path.glob("*/partition-*.npz")}
        with pytest.MonkeyPatch.context() as patch:
            made = []
            make = loading.partition_rows
            patch.setattr(loading, "partition_rows", lambda *args, **more: made.append(0) or make(*args, **more))
            config, choices = compose("model=logistic", *overrides, f"cache_dir={tmp_path / 'cache'}")
            data = Experiment(config, choices).data
        is_kept = entries != {*tmp_path.glob("*/partition-*.npz")}
        return [rows.tolist() for rows in (*data.train, *data.validation)], not made, is_kept

    return partition_


def test_a_second_run_reads_the_same_rows(partition):
    rows, is_known, is_kept = partition()
    assert (is_known, is_kept) == (False, True)
    assert partition() == (rows, True, False)


@pytest.mark.parametrize(
    "other", ["seed=1", "partitioner.alpha=1", "federation.num_supernodes=9", "partitioner=iid", "partitioner.seed=3"]
)
def test_another_partition_is_made(partition, other):
    assert partition(other) != partition()
    assert partition(other)[1]


def test_what_other_code_makes_is_not_kept(partition, tmp_path):
    (tmp_path / "rows.json").write_text("[[0, 1], [2, 3, 4]]")
    for words in (
        ["partitioner=id_to_size"],  # with a function among its arguments
        ["partitioner=distribution"],
        ["partitioner=file", f"partitioner.path={tmp_path / 'rows.json'}", "federation.fraction_train=1"],
    ):
        rows, *_ = partition(*words)
        assert partition(*words) == (rows, False, False)


def test_samples_count_and_the_newest_entries_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(partition_cache, "_KEPT", 2)
    for seed in range(3):
        cached = CachedRows(tmp_path, {"seed": seed}, SAMPLES)
        assert cached.read() is None
        cached.write(ROWS)
        assert [rows.tolist() for rows in cached.read()] == [rows.tolist() for rows in ROWS]
    assert len([*tmp_path.iterdir()]) == 2
    others = Samples(SAMPLES.x, SAMPLES.y.flip(0))
    assert CachedRows(tmp_path, {"seed": 2}, others).read() is None


def test_a_damaged_entry_or_a_missing_folder_stops_nothing(tmp_path):
    cached = CachedRows(tmp_path, {}, SAMPLES)
    cached.write(ROWS)
    (entry,) = tmp_path.iterdir()
    for damage in (lambda content: content[:-40], without_a_size):
        entry.write_bytes(damage(entry.read_bytes()))
        assert cached.read() is None
        cached.write(ROWS)
        assert cached.read()
    (tmp_path / "file").write_text("")
    CachedRows(tmp_path / "file", {}, SAMPLES).write(ROWS)
