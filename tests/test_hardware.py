"""The same apps on every hardware: what is equal, how nearly, and what is refused."""

import numpy as np
import pytest

from fedresearch.errors import InputError
from fedresearch.experiment import Experiment

SMALL = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=2"]
EAGER = ["hardware=batched", "hardware.compile=false"]


def nearly_equal(one, other, tolerance):
    for name, array in one.arrays.items():
        np.testing.assert_allclose(other.arrays[name], array, rtol=0, atol=tolerance * np.abs(array).max())
    for ours, theirs in zip(one.rows, other.rows, strict=True):
        assert ours["local/steps"] == theirs["local/steps"]
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=max(tolerance, 1e-6))


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        "fedprox",
        "scaffold",
        "fednova",
        "feddyn",
        "moon",
        "fedrep",
        "fedper",
        "fedbabu",
        "ditto",
        "local_only",
    ],
)
def test_a_batched_cohort_is_its_clients_up_to_rounding(run, strategy):
    """In float64, where rounding is 1e-16 and any other difference would show; states of the clients included."""
    options = [*SMALL, "dtype=float64", f"strategy={strategy}"]
    alone, together = run(*options), run(*options, *EAGER)
    nearly_equal(alone, together, 1e-12)
    kept, other = alone.experiment.grid.states, together.experiment.grid.states
    assert kept.keys() == other.keys()
    for node_id, state in kept.items():
        assert state.keys() == other[node_id].keys()
        for key, record in state.array_records.items():
            for name, array in record.items():
                np.testing.assert_allclose(other[node_id][key][name].numpy(), array.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.momentum=0.9", "optimizer.weight_decay=0.01"],
        ["optimizer=adam"],
        ["optimizer=adagrad"],
        ["local.epochs=null", "local.steps=3", "local.batch_size=0"],
        ["dataset=diabetes", "partitioner=linear", "optimizer.lr=0.01"],
        ["hardware.chunk=2"],
        ["hardware.chunk=4"],
        ["strategy=scaffold", "strategy.client.option=I", "sampling=proportional"],
        ["partitioner.alpha=0.02", "partitioner.min_partition_size=0", "federation.num_supernodes=20"],
        ["federation.num_supernodes=1", "partitioner=iid"],
    ],
    ids=" ".join,
)
def test_so_it_is_with_other_options(run, overrides):
    options = [*SMALL, "dtype=float64", *[override for override in overrides if "hardware" not in override]]
    nearly_equal(run(*options), run(*options, *EAGER, *[o for o in overrides if "hardware" in o]), 1e-11)


def test_a_chunks_result_does_not_depend_on_the_order_of_its_clients(run):
    from fedresearch.local.cohort import CohortTrainer

    result = run(*SMALL, *EAGER)
    clients, trainer = result.experiment.client_app, CohortTrainer(4, False, 0)
    from flwr.app import ConfigRecord, Context, RecordDict

    from fedresearch.apps.cohort import CohortGrid

    def models(partition_ids):
        grid = CohortGrid(result.experiment.grid, sorted(partition_ids))
        config = ConfigRecord(dict(result.experiment._client_config(1)))
        sent = result.experiment.strategy.configure_train(1, result.experiment.initial_arrays, config, grid)
        by_id = {grid.partition_of(message.metadata.dst_node_id): message for message in sent}
        contexts = [Context(1, i, {"partition-id": i}, RecordDict(), {}) for i in partition_ids]
        replies = clients.train_cohort([by_id[i] for i in partition_ids], contexts, trainer)
        arrays = [reply.content["arrays"] for reply in replies]
        return {
            i: {k: a.numpy().tobytes() for k, a in record.items()}
            for i, record in zip(partition_ids, arrays, strict=True)
        }

    assert models([0, 3, 5, 1]) == models([5, 1, 0, 3])
    alone = models([3, 5, 0])  # a chunk with a place left, and one who is there no more
    assert alone == {i: model for i, model in models([0, 3, 5, 1]).items() if i != 1}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=resnet18", "model.norm=batch", "local.batch_size=0"],
            "clients cannot be batched (.*); try hardware=cpu",
        ),
        (["local.keep_optimizer_state=true"], "optimizers start afresh in every round here"),
    ],
)
def test_what_cannot_be_batched_is_refused_before_the_run(compose, overrides, said):
    experiment = Experiment(*compose(*EAGER, "tracker=none", *overrides))
    with pytest.raises(InputError, match=said.replace("(.", r"\(.").replace("*)", r"*\)")):
        experiment.build()


def test_dropout_cannot_be_batched(compose, tmp_path, monkeypatch):
    """Its draws would not be the client's own."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dropping.yaml").write_text("_target_: dropping_model.net\n")
    (tmp_path / "dropping_model.py").write_text(
        "from torch.nn import Dropout, Flatten, Linear, Sequential\n"
        "def net(input_shape, num_classes):\n    return Sequential(Flatten(), Dropout(0.5), Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    experiment = Experiment(*compose(*EAGER, "model=dropping", "tracker=none", config_dir=tmp_path))
    with pytest.raises(InputError, match="clients cannot be batched"):
        experiment.build()


def test_the_chunk_counts_in_the_digest_and_other_hardware_does_not(compose):
    from fedresearch.config import digest

    def digest_of(*overrides):
        return digest(compose(*overrides)[0])

    assert digest_of("hardware=batched", "hardware.compile=true") == digest_of(*EAGER)
    assert len({digest_of(), digest_of(*EAGER), digest_of(*EAGER, "hardware.chunk=8")}) == 3


@pytest.mark.slow
def test_the_compiled_step_stays_within_a_hundred_thousandth(run):
    """Relative to the largest of each array's entries, in float32, after five rounds."""
    options = ["federation.num_supernodes=20", "federation.num_rounds=5", "model=logistic", "local.epochs=1"]
    nearly_equal(run(*options), run(*options, "hardware=batched"), 1e-5)


def test_without_a_compiler_the_step_runs_uncompiled_and_says_so_once(run, monkeypatch, caplog):
    import torch

    attempts = []

    def broken(*_):
        attempts.append(1)
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    options = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=1", "model=logistic"]
    result = run(*options, "hardware=batched")
    assert len(attempts) == 1
    assert [record.message for record in caplog.records] == [
        "the step could not be compiled and runs uncompiled: No working C++ compiler found"
    ]
    nearly_equal(run(*options), result, 1e-5)
