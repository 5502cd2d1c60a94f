"""A cohort trained in one batched call: what is equal, how nearly, and what is refused."""

import copy
import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import codecache
from torch._inductor.runtime import cache_dir_utils

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.preparation import prepare
from fedresearch.local import compiled
from fedresearch.local.compiled import keep_code_in
from fedresearch.local.stacked import StackedTrainer
from fedresearch.local.train import LocalTrainer, LocalWork, Task
from fedresearch.local.update import End, LocalUpdate
from tests.conftest import LONG

SMALL = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=2", "local.batch_size=20"]
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
        "qfedavg",
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
        ["optimizer=adam", "hardware.chunk=2"],
        ["optimizer.momentum=0.9", "++optimizer.dampening=0.5", "hardware.chunk=2"],
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


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_clients_result_does_not_depend_on_the_order_and_the_others_of_its_chunk(run, model, compiled):
    result = run(*SMALL, *EAGER, f"model={model}")
    clients, trainer = result.experiment.client_app, StackedTrainer(5, compiled, 0)
    from flwr.app import ConfigRecord, Context, RecordDict

    from fedresearch.federation.cohort_grid import CohortGrid

    def models(partition_ids):
        grid = CohortGrid(result.experiment.grid, sorted(partition_ids))
        config = ConfigRecord(dict(result.experiment.client_config(1)))
        sent = result.experiment.strategy.configure_train(1, result.experiment.initial_arrays, config, grid)
        by_id = {grid.partition_of(message.metadata.dst_node_id): message for message in sent}
        contexts = [Context(1, i, {"partition-id": i}, RecordDict(), {}) for i in partition_ids]
        replies = clients.train_clients([by_id[i] for i in partition_ids], contexts, trainer)
        arrays = [reply.content["arrays"] for reply in replies]
        return {
            i: {k: a.numpy().tobytes() for k, a in record.items()}
            for i, record in zip(partition_ids, arrays, strict=True)
        }

    together = models([0, 3, 5, 1, 4])
    assert together == models([5, 1, 4, 0, 3])
    for i, model in together.items():  # in the first place, and beside copies
        assert models([i]) == {i: model}
    for left_out in together:  # at other places
        others = {i: model for i, model in together.items() if i != left_out}
        assert models([*others]) == others


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=resnet18", "model.norm=batch", "local.batch_size=0"],
            "hardware=batched cannot train these clients (.*), which can be trained one at a time; try hardware=cpu",
        ),
        (["local.keep_optimizer_state=true"], "optimizers start anew in every round here"),
    ],
)
def test_what_cannot_be_batched_is_refused_before_the_run(compose, overrides, said):
    experiment = Experiment(*compose(*EAGER, "tracker=none", *overrides))
    with pytest.raises(InputError, match=said.replace("(.", r"\(.").replace("*)", r"*\)")):
        prepare(experiment)


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
    with pytest.raises(InputError, match=r"^hardware=batched cannot train these clients"):
        prepare(experiment)


class Counting(torch.nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return super().forward(x.flatten(1))


class Idle(torch.nn.Linear):
    """With a parameter that has no gradient, and so no decay."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.idle = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return super().forward(x.flatten(1))


class Batchwise(LocalUpdate):
    def objective(self, model, params, x, y, fixed):
        outputs = model(params, x)
        return torch.nn.functional.cross_entropy(outputs - outputs.mean(0), y, reduction="none")


class Slowing(torch.optim.SGD):
    """Whose number of steps is no tensor."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        for group in self.param_groups:
            group["lr"] = group["lr"] / self.num_steps
        super().step()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", Counting(64, 10)),
        ("model", Idle(64, 10)),
        ("model", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64, track_running_stats=False))),
        ("update", Batchwise()),
        ("optimizer", Slowing),
    ],
)
def test_clients_that_would_train_to_other_numbers_together_are_refused(compose, part, value):
    """Buffers that a step changes are lost there, and short batches are padded."""
    experiment = Experiment(*compose(*EAGER, "tracker=none", "optimizer.weight_decay=0.01", "model=logistic"))
    vars(experiment)[part] = value
    with pytest.raises(InputError, match=r"^hardware=batched trains these clients to other numbers than one at a time"):
        prepare(experiment)


@pytest.mark.parametrize(("draw", "of"), [(random.random, "Python"), (np.random.rand, "NumPy")])
def test_a_model_that_draws_seldom_is_refused(compose, draw, of):
    class Hesitant(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1) * (draw() > 1e-9))

    experiment = Experiment(*compose(*EAGER, "tracker=none"))
    experiment.model = Hesitant(64, 10)
    with pytest.raises(
        InputError, match=rf"\(it draws from the global generator of {of}\), which can be trained one at"
    ):
        prepare(experiment)


class Storing(LocalUpdate):
    def begin(self, start):
        self.scale = 1.0 + start.partition_id
        return {}

    def end(self, params, fixed, drift):
        return End(params={name: self.scale * param for name, param in params.items()})


@pytest.mark.parametrize("hardware", [EAGER, ["hardware=batched"]])
def test_an_update_that_keeps_a_clients_values_in_attributes_is_refused(compose, hardware):
    """All clients begin before the first one ends."""
    experiment = Experiment(*compose(*hardware, "tracker=none", "model=logistic"))
    experiment.update = Storing()
    said = "hardware=batched trains clients together, and strategy.client keeps scale in attributes, which they would"
    with pytest.raises(InputError, match=f"^{said}"):
        prepare(experiment)


def test_the_chunk_counts_in_the_digest_and_other_hardware_does_not(compose):
    from fedresearch.config import digest

    def digest_of(*overrides):
        return digest(compose(*overrides)[0])

    assert digest_of("hardware=batched", "hardware.compile=auto") == digest_of(*EAGER)
    assert len({digest_of(), digest_of(*EAGER), digest_of(*EAGER, "hardware.chunk=8")}) == 3


COMPILED = ["federation.num_supernodes=20", "federation.num_rounds=5", "model=logistic", "local.epochs=1"]


@pytest.mark.slow
def test_the_compiled_step_stays_within_a_hundred_thousandth(run):
    """Relative to the largest of each array's entries, in float32, after five rounds."""
    nearly_equal(run(*COMPILED), run(*COMPILED, "hardware=batched"), 1e-5)


@pytest.fixture
def traced(monkeypatch):
    """Run what has been traced as it is: a number that is frozen in it stays frozen.

    Inductor takes five seconds for each of the two codes of such a run; ``./scripts/test --long`` has it.
    """
    if not LONG:
        monkeypatch.setattr("torch._inductor.compile", lambda graph, arguments: graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.momentum=0.9", "optimizer.nesterov=true", "optimizer.weight_decay=0.01"],
        ["optimizer=adam"],
        ["optimizer=adamw"],
        ["optimizer=adagrad", "optimizer.lr_decay=0.1"],
        ["strategy=scaffold"],
        ["strategy=fedrep", "model=mlp"],
    ],
    ids=" ".join,
)
def test_compiled_and_not_are_one_arithmetic(request, run, overrides):
    """In float64, with a learning rate of each round's own: none of its numbers is frozen in the code."""
    if "optimizer=adam" not in overrides:  # whose steps have most to them
        request.getfixturevalue("traced")
    options = [*COMPILED, "federation.num_rounds=3", "schedule=inverse", "dtype=float64", *overrides]
    nearly_equal(run(*options), run(*options, "hardware=batched"), 1e-12)


@pytest.mark.slow
def test_one_code_serves_all_rounds(run, monkeypatch, traced):
    """Whatever the learning rate; a client's first step creates the optimizer's state in the same code."""
    from fedresearch.local import stacked

    made = []
    compile_code = stacked.compile_code
    monkeypatch.setattr(stacked, "compile_code", lambda *arguments: made.append(1) or compile_code(*arguments))
    run(*COMPILED, "dtype=float64", "schedule=inverse", "hardware=batched", "optimizer.momentum=0.9")
    assert len(made) == 1


@pytest.mark.slow
def test_so_it_does_where_each_client_brings_samples_of_its_own(run, monkeypatch, traced):
    """Which are no views of one array, and of other sizes in another round's cohort."""
    from fedresearch.data.federated import FederatedData
    from fedresearch.local import stacked

    options = [*COMPILED, "dtype=float64", "federation.num_rounds=4", "federation.fraction_train=0.5"]
    together = run(*options, "hardware=batched")
    made, pools = [], []
    compile_code, pool = stacked.compile_code, stacked._pool
    monkeypatch.setattr(stacked, "compile_code", lambda *arguments: made.append(1) or compile_code(*arguments))
    monkeypatch.setattr(stacked, "_pool", lambda tasks: pools.append(sum(len(t.y) for t in tasks)) or pool(tasks))
    samples = FederatedData.train_samples
    monkeypatch.setattr(
        FederatedData, "train_samples", lambda self, i: tuple(tensor.clone() for tensor in samples(self, i))
    )
    apart = run(*options, "hardware=batched")
    assert sum(size > 400 for size in set(pools)) == 4  # the rehearsal has smaller ones
    assert len(made) == 2  # for 512 samples and for 1,024
    nearly_equal(together, apart, 1e-12)


def test_without_a_compiler_the_step_runs_uncompiled_and_says_so_once(run, tmp_path, monkeypatch, caplog):
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    options = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=1", "model=logistic"]
    options.append("dtype=float64")  # which the dense kernel does not train
    with torch._inductor.config.patch({"cpp.cxx": ("no-compiler",)}), caplog.at_level("WARNING", "fedresearch"):
        result = run(*options, "hardware=batched")
    said = [record.message for record in caplog.records if record.name == "fedresearch"]
    assert len(said) == 1
    assert said[0].startswith("the step could not be compiled and runs uncompiled: ")
    nearly_equal(run(*options), result, 1e-12)


def test_the_optimizers_state_must_be_tensors():
    import torch

    from fedresearch.local.compiled import optimize

    class Counting(torch.optim.SGD):
        def step(self):
            for param in self.param_groups[0]["params"]:
                self.state[param]["steps"] = 1

    param = torch.zeros(3)
    with pytest.raises(ValueError, match="the optimizer's state must be tensors, got steps=1"):
        optimize(lambda params: Counting(params, lr=0.1), {"w": param}, {"w": torch.ones(3)}, {}, torch.tensor(0.1))


@pytest.mark.parametrize(
    "option", [["optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer=adam"], ["optimizer=adagrad"]], ids=" ".join
)
def test_torchs_multi_tensor_kernels_change_nothing(run, option):
    """They are what an optimizer uses on a GPU, unless it is given another choice."""
    plain, multi = (run(*SMALL, *EAGER, *option, f"++optimizer.foreach={foreach}") for foreach in ("null", "true"))
    assert plain.numbers() == multi.numbers()


@pytest.mark.parametrize("model", ["resnet18", "logistic"])
def test_convolutions_are_said_to_be_faster_on_cpu(compose, caplog, model):
    with caplog.at_level("WARNING", "fedresearch"):
        _ = Experiment(*compose(*EAGER, f"model={model}", "tracker=none")).grid
    said = [record.message for record in caplog.records if record.name == "fedresearch"]
    assert said == ["the model has convolutions, which train faster one client after another; try hardware=cpu"] * (
        model == "resnet18"
    )


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")


def test_compiled_code_is_kept_where_only_this_user_may_write(tmp_path, monkeypatch, no_folder):
    folder = tmp_path / "cache" / f"compiled-{os.geteuid()}"
    for _ in range(2):
        keep_code_in(tmp_path / "cache")
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    keep_code_in(tmp_path / "cache")
    assert cache_dir_utils.cache_dir() == str(tmp_path / "named")
    assert stat.S_IMODE((tmp_path / "named").stat().st_mode) == 0o700


def test_headers_are_compiled_in_that_folder_too(tmp_path, monkeypatch):
    """Inductor has them in /tmp, and what it finds there becomes part of the code."""
    folders = []

    def compile_(graph, arguments):
        folders.extend((codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR))
        return graph

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.compile", compile_)
    compiled.compile_code(lambda x: [x + 1], [torch.zeros(2)])
    assert folders == [f"{tmp_path}/precompiled_headers", f"{tmp_path}/precompiled_headers/locks"]


@pytest.mark.parametrize("found", ["writable by others", "of another user", "a link", "a file"])
@pytest.mark.parametrize("named", [False, True])
def test_code_that_others_may_have_written_is_not_run(tmp_path, monkeypatch, no_folder, found, named):
    folder = tmp_path / f"compiled-{os.geteuid()}"
    if named:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    if found == "a file":
        folder.touch()
    elif found == "a link":
        (tmp_path / "theirs").mkdir()
        folder.symlink_to("theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777 if found == "writable by others" else 0o700)
    if found == "of another user":
        lstat = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result((*lstat(path)[:4], 12345, *lstat(path)[5:])))
    with pytest.raises(
        InputError,
        match=rf"{folder} (must be a folder that only you can write|cannot be written: File exists).*try cache_dir=DIR",
    ) as refused:
        keep_code_in(tmp_path)
    assert ("without TORCHINDUCTOR_CACHE_DIR" in str(refused.value)) == (named and found != "a file")


def test_a_shared_parameter_is_trained_under_all_its_names():
    """An evaluation loads each name, so that an old value under the second one would replace the trained one."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    x, y = torch.randn(7, 4), torch.randint(4, (7,))
    update, work = LocalUpdate(), LocalWork(2, None, 3)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Task(start, x, y, update, update.stages(model), {"lr": 0.5}, lambda _: 1)
    expected = LocalTrainer(copy.deepcopy(model), torch.optim.SGD, work)(task).state
    (trained,) = StackedTrainer(1, False, 7)([task], model, optimizer=torch.optim.SGD, work=work)
    torch.testing.assert_close(trained.state, dict(expected))
    assert not torch.equal(trained.state["2.weight"], start["2.weight"])
