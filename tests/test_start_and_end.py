"""What a client half learns at the start of a round, and what it may return at the end."""

import textwrap

import numpy as np
import pytest

from fedresearch.errors import InputError

PLUGINS = """
    from fedresearch.local.update import End, LocalUpdate
    from fedresearch.strategies.fedper import PersonalHead


    class Knowing(LocalUpdate):
        def begin(self, start):
            return {"round": start.server_round, "i": start.partition_id, "low": start.seed % 1000}

        def correct(self, gradients, params, fixed):
            return {name: gradient * (1 + fixed["i"]) for name, gradient in gradients.items()}

        def end(self, params, fixed, drift):
            return End(metrics=fixed)


    class Opposite(LocalUpdate):
        def begin(self, start):
            return {"x": {name: tensor.clone() for name, tensor in start.anchor.items()}}

        def end(self, params, fixed, drift):
            return End(params={name: 2 * fixed["x"][name] - params[name] for name in params})


    class OppositeBody(Opposite, PersonalHead):
        pass


    class Weighing(LocalUpdate):
        def end(self, params, fixed, drift):
            return End(metrics={"num-examples": 1})


    class Sometimes(LocalUpdate):
        def begin(self, start):
            return {"i": start.partition_id}

        def end(self, params, fixed, drift):
            return End(metrics={"seen": 1.0} if fixed["i"] % 2 else {})
"""
SMALL = ["dtype=float64", "model=logistic", "federation.num_supernodes=4", "federation.num_rounds=2", "local.epochs=1"]
ALL = [*SMALL, "federation.fraction_train=1"]


@pytest.fixture
def run_with(run, tmp_path, monkeypatch):
    """Return a function that runs an experiment with one of the client halves above."""
    (tmp_path / "knowing.py").write_text(textwrap.dedent(PLUGINS))
    (tmp_path / "strategy").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def run_(name, *overrides, parent="fedavg"):
        text = f"defaults: [{parent}, _self_]\nclient:\n  _target_: knowing.{name}\n"
        (tmp_path / "strategy" / f"{name.lower()}.yaml").write_text(text)
        return run(f"strategy={name.lower()}", *overrides, config_dir=tmp_path)

    return run_


@pytest.mark.parametrize("hardware", [[], ["hardware=batched", "hardware.compile=false"]], ids=["cpu", "batched"])
def test_a_client_knows_its_round_its_partition_and_a_seed_of_both(run_with, hardware):
    """The columns are the means over clients, weighted by examples."""
    result = run_with("Knowing", *ALL, *hardware)
    sizes = [len(rows) for rows in result.experiment.data.train]
    assert [row["train/round"] for row in result.rows] == pytest.approx([1, 2])
    assert [row["train/i"] for row in result.rows] == pytest.approx([np.average(range(4), weights=sizes)] * 2)
    low = [row["train/low"] for row in result.rows]
    assert low[0] != low[1]
    assert run_with("Knowing", *ALL).rows[0]["train/low"] == pytest.approx(low[0])
    assert run_with("Knowing", *ALL, "seed=1", "partitioner.seed=0").rows[0]["train/low"] != pytest.approx(low[0])


def test_a_number_of_each_client_is_its_own_in_a_batch(run_with):
    """Client i descends 1 + i times its gradient, wherever it trains."""
    alone, together = (run_with("Knowing", *ALL, *more) for more in ([], ["hardware=batched"]))
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hardware", ["cpu", "batched"])
def test_a_client_may_send_other_parameters(run, run_with, hardware):
    """All clients send 2 x - y for their trained y, so the mean is 2 x less FedAvg's mean."""
    mean = run(*ALL, "federation.num_rounds=1")
    x = mean.experiment.initial_arrays
    result = run_with("Opposite", *ALL, "federation.num_rounds=1", f"hardware={hardware}")
    for name, array in mean.arrays.items():
        np.testing.assert_allclose(result.arrays[name], 2 * x[name].numpy() - array, rtol=0, atol=1e-12)


def test_a_personal_part_stays_as_trained(run, run_with):
    options = [*ALL, "model=mlp", "federation.num_rounds=1"]
    plain, other = run("strategy=fedper", *options), run_with("OppositeBody", *options, parent="fedper")
    kept, same = ([state["parts"] for state in each.experiment.grid.states.values()] for each in (plain, other))
    assert len(kept) == 4
    for one, head in zip(kept, same, strict=True):
        assert {k: a.numpy().tobytes() for k, a in one.items()} == {k: a.numpy().tobytes() for k, a in head.items()}
    assert all((other.arrays[name] != array).any() for name, array in plain.arrays.items())


def test_names_of_metrics_that_exist_or_differ_are_refused(run_with):
    with pytest.raises(InputError, match="the metric num-examples exists already; rename it"):
        run_with("Weighing", *ALL)
    with pytest.raises(
        InputError, match="partition 1 must have the metrics of the round's first reply; different: seen"
    ):
        run_with("Sometimes", *ALL)
