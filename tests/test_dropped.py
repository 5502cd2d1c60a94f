"""A client whose update is not finite in one round: it is dropped from that round, and from no other."""

import pytest

from fedresearch.federation.client_app import Clients
from tests.directories import conduct, rows_of


@pytest.mark.parametrize(
    "keeps",
    ["strategy=fedper", "strategy=feddyn", "strategy=moon", "local.keep_optimizer_state=true"],
)
def test_a_dropped_client_resumes_from_what_it_had(tmp_path, monkeypatch, keeps):
    make_task = Clients._task

    def overflow_once(clients, *which, **options):
        task = make_task(clients, *which, **options)
        rehearsed = len(clients.data.train) == 1
        if rehearsed or (task.partition_id, task.server_round) != (1, 1):
            return task
        return task._replace(config={**task.config, "lr": float("inf")})

    monkeypatch.setattr(Clients, "_task", overflow_once)
    words = ["optimizer.momentum=0.9", "federation.num_rounds=2", "federation.fraction_train=1"]
    run = conduct(tmp_path / "run", keeps, *words, "federation.nonfinite=drop")
    assert [row["clients/dropped"] for row in rows_of(run)[1:]] == [1, 0]
