"""Runs one after another in one process, as a sweep's jobs are."""

import gc
import weakref

from fedresearch.experiment import run
from tests.directories import conduct


def test_a_run_frees_what_the_one_before_it_loaded(tmp_path, monkeypatch):
    data = []
    prepare = run.prepare

    def remember(experiment):
        prepare(experiment)
        data.append(weakref.ref(experiment.data))

    monkeypatch.setattr(run, "prepare", remember)
    for seed in range(2):
        conduct(tmp_path / str(seed), "federation.num_rounds=1", f"seed={seed}")
    gc.collect()  # as a sweep does after each job
    assert [each() for each in data] == [None, None]
