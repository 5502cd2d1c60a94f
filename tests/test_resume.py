"""A run resumes from a checkpoint to the bits of an undisturbed run, or a line explains why not."""

import json
import os
import shutil
import signal
import textwrap
from dataclasses import asdict

import numpy as np
import pytest

from fedresearch import config
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError
from fedresearch.experiment import checkpoints, resuming
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.request import RunRequest
from fedresearch.local import stacked
from fedresearch.local.train import LocalTrainer
from fedresearch.runs.directory import RunDirectory
from fedresearch.runs.loaded import load
from fedresearch.runs.record import dump_record, read_record, read_rows
from tests.directories import (
    MLP,
    SCAFFOLD,
    SHORT,
    conduct,
    killed,
    outcome,
    rounds_of_checkpoints,
    rows_of,
    set_status,
)

pytestmark = pytest.mark.slow

STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("[!_]*.yaml"))


@pytest.fixture(scope="module")
def normed_dir(tmp_path_factory):
    """Return a folder with a small model that has BatchNorm."""
    folder = tmp_path_factory.mktemp("normed")
    (folder / "model").mkdir()
    (folder / "model" / "normed.yaml").write_text("_target_: resumed_model.Normed\n")
    (folder / "resumed_model.py").write_text(
        textwrap.dedent(
            """
            from math import prod
            from torch import nn

            class Normed(nn.Sequential):
                def __init__(self, input_shape, num_classes):
                    width = prod(input_shape)
                    super().__init__(nn.Flatten(), nn.Linear(width, 6), nn.BatchNorm1d(6), nn.Linear(6, num_classes))
            """
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def check_resumed(tmp_path, *overrides, checkpoint=2, row=None, then=(), config_dir=None):
    config_dir = config_dir if "model=normed" in overrides else None  # without, equal words are composed once
    undisturbed = conduct(tmp_path / "whole", *overrides, config_dir=config_dir)
    resumed = killed(undisturbed, tmp_path / "resumed", checkpoint=checkpoint, row=row)
    conduct(resumed, *overrides, *then, config_dir=config_dir)
    assert outcome(resumed) == outcome(undisturbed)
    assert read_record(resumed)["resumed"][-1]["after_round"] == checkpoint


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_resumes_to_the_same_bits(tmp_path, normed_dir, strategy):
    options = {
        "fedbn": ["model=normed"],
        "fedtrimmedavg": ["strategy.server.beta=0.4"],
    }  # of 3 clients, one at each end
    check_resumed(tmp_path, f"strategy={strategy}", *options.get(strategy, ()), config_dir=normed_dir)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam", "local.keep_optimizer_state=true"],
        ["optimizer.momentum=0.9", "local.keep_optimizer_state=true", "strategy=ditto"],
        ["sampling=proportional"],
        ["sampling=round_robin"],
        ["sampling=fixed", "sampling.partition_ids=[1,3]"],
        ["availability=bernoulli", "availability.probability=0.3"],
        ["availability=stragglers", "optimizer.momentum=0.9", "local.keep_optimizer_state=true"],
        ["evaluate_sampling=round_robin", "federation.fraction_evaluate=0.4"],
        ["schedule=cosine"],
        ["dtype=float64", "federation.evaluate_every=3"],
        ["federation.fraction_evaluate=0", "validation.fraction=0"],
        ["model=normed"],
        ["model=normed", "strategy.buffers=local", "strategy=fedadam"],
        ["model=cnn_mcmahan", "memory_format=channels_last", "strategy=fedavgm"],
    ],
    ids=" ".join,
)
def test_every_option_resumes_to_the_same_bits(tmp_path, normed_dir, overrides):
    check_resumed(tmp_path, *overrides, config_dir=normed_dir)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("hardware=cpu", "hardware=workers hardware.workers=2"),
        ("hardware=workers", "hardware=cpu"),
        ("hardware=workers", "hardware=workers hardware.workers=1"),
        ("hardware=cpu", "hardware=gpu hardware.device=cpu"),  # the option's own path, on any machine
    ],
)
def test_hardware_may_change_on_resume(tmp_path, whole, first, then):
    """From cpu to Ray: in tests/test_cores.py."""
    undisturbed = whole if first == "hardware=cpu" else conduct(tmp_path / "first", *SCAFFOLD, first)
    resumed = killed(undisturbed, tmp_path / "resumed", checkpoint=2)
    conduct(resumed, *SCAFFOLD, *then.split())
    assert outcome(resumed) == outcome(undisturbed)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batched_resumes_to_the_same_bits(tmp_path, monkeypatch, compiled):
    options = [*SCAFFOLD, "dtype=float64"]  # which the dense kernel does not train
    made, compile_code = [], stacked.compile_code
    monkeypatch.setattr(stacked, "compile_code", lambda *arguments: made.append(compile_code(*arguments)) or made[-1])
    check_resumed(tmp_path, "hardware=batched", f"hardware.compile={'auto' if compiled else 'false'}", *options)
    assert len(made) == (2 if compiled else 0)  # each of the two runs its own
    resumed = killed(tmp_path / "whole", tmp_path / "other", checkpoint=2)
    with pytest.raises(InputError, match=r"started with hardware.chunk="):
        conduct(resumed, *options)


@pytest.mark.parametrize(("checkpoint", "row"), [(2, 3), (2, 4), (0, 0), (0, 3), (4, 4)])
def test_rows_after_the_checkpoint_are_recomputed(tmp_path, whole, checkpoint, row):
    before = rows_of(whole)
    resumed = killed(whole, tmp_path / "run", checkpoint=checkpoint, row=row)
    kept = (resumed / "metrics.jsonl").read_bytes()
    conduct(resumed, *SCAFFOLD)
    assert rows_of(resumed) == before
    assert outcome(resumed) == outcome(whole)
    assert (resumed / "metrics.jsonl").read_bytes().startswith(kept)  # their times do not change either


def test_a_recomputed_row_keeps_its_bytes(tmp_path, whole):
    """With any spacing: later checkpoints belong to the file as it is."""
    resumed = killed(whole, tmp_path / "run", checkpoint=1, row=3)
    metrics = resumed / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:2], *(line.replace(b": ", b" :") for line in lines[2:])]))
    conduct(resumed, *SCAFFOLD)
    conduct(resumed, *SCAFFOLD, "federation.num_rounds=5")
    assert rows_of(resumed)[:5] == rows_of(whole)


@pytest.mark.parametrize("torn", [b'{"round": 3, "local/lr"', b"\0\0\0\0\n", b'{"round": 3\n', b"\xff"])
def test_a_torn_last_row_is_cut_off(tmp_path, whole, torn):
    resumed = killed(whole, tmp_path / "run", checkpoint=2)
    with (resumed / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    conduct(resumed, *SCAFFOLD)
    assert outcome(resumed) == outcome(whole)


def edit_row(directory, server_round, **fields):
    rows = read_rows(directory)
    rows[server_round] |= fields  # the first is of round 0
    # As runs write them: the rows before stay what a checkpoint knows.
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def test_a_changed_row_is_rejected(tmp_path, whole):
    past = killed(whole, tmp_path / "past", checkpoint=2, row=4)
    was = read_rows(past)[3]["train/loss"]
    edit_row(past, 3, **{"train/loss": 0.5})
    with pytest.raises(InputError, match=f"round 3 differs from before: train/loss is {was} and was 0.5"):
        conduct(past, *SCAFFOLD)
    before = killed(whole, tmp_path / "before", checkpoint=2, row=4)
    edit_row(before, 1, **{"train/loss": 0.5})
    with pytest.raises(InputError, match="is not what it was when the checkpoint of round 2 was written"):
        conduct(before, *SCAFFOLD)
    short = killed(whole, tmp_path / "short", checkpoint=2, row=1)
    with pytest.raises(InputError, match="is not what it was when the checkpoint of round 2 was written"):
        conduct(short, *SCAFFOLD)


def test_a_row_without_one_of_its_keys_is_a_changed_row(tmp_path, whole):
    past = killed(whole, tmp_path / "past", checkpoint=2, row=3)
    edit_row(past, 3, **{"eval/losss": None})
    with pytest.raises(InputError, match="round 3 differs from before: eval/losss"):
        conduct(past, *SCAFFOLD)


def test_without_checkpoints_all_rounds_are_recomputed(tmp_path, whole):
    undisturbed = conduct(tmp_path / "none", *SCAFFOLD, "checkpoint.every=0")
    assert not (undisturbed / "checkpoints").exists()
    assert rows_of(undisturbed) == rows_of(whole)
    set_status(undisturbed, "running")
    conduct(undisturbed, *SCAFFOLD, "checkpoint.every=0")
    assert rows_of(undisturbed) == rows_of(whole)
    assert read_record(undisturbed)["resumed"][-1]["after_round"] == 0


def test_a_changed_value_is_rejected_and_named(tmp_path, whole):
    resumed = killed(whole, tmp_path / "run", checkpoint=2)
    with pytest.raises(
        InputError,
        match=r"started with seed=0 \(now 1\), optimizer.lr=0.1 \(now 0.2\); a resumed run must give the numbers that "
        "it started with; leave out optimizer.lr=0.2 seed=1, or start a new run$",
    ):
        conduct(resumed, *SCAFFOLD, "optimizer.lr=0.2", "name=other", "seed=1")
    conduct(resumed, *SCAFFOLD, "name=other", "checkpoint.every=3", "checkpoint.keep=1")
    assert rows_of(resumed) == rows_of(whole)
    assert rounds_of_checkpoints(resumed) == [4]  # the last round is always kept


def test_a_key_that_only_one_config_has_is_named(compose, tmp_path, monkeypatch):
    (before, chosen), (now, _) = (compose(f"optimizer={name}", "tracker=none") for name in ("sgd", "adam"))
    past = {"config": asdict(before), "choices": chosen, "overrides": [], "status": "interrupted"}
    monkeypatch.setattr(resuming, "refuse_invalid_fields", lambda *_: None)  # of the record, only this is read
    with pytest.raises(
        InputError, match=r"optimizer.momentum=0.0 \(now not set\), .*optimizer.betas not set \(now \[.*; restore these"
    ):
        resuming.is_unfinished(past, RunRequest(now, chosen, tmp_path, [], [], []))


def test_another_option_is_rejected_by_its_name(compose, tmp_path, monkeypatch):
    (before, chosen), (now, choices) = (
        compose(*words, "tracker=none", "name=it")
        for words in (
            [],
            ["strategy=fedprox", "schedule=step", "strategy.server.proximal_mu=1", "local.epochs=3", "channel=[clip]"],
        )
    )
    past = {"config": asdict(before), "choices": chosen, "overrides": ["name=it"], "status": "interrupted"}
    monkeypatch.setattr(resuming, "refuse_invalid_fields", lambda *_: None)
    words = ["name=it", "strategy=fedprox", "schedule=step", "strategy.server.proximal_mu=1", "local.epochs=3"]
    words += ["channel=[clip]"]
    with pytest.raises(InputError) as error:
        resuming.is_unfinished(past, RunRequest(now, choices, tmp_path, words, [], []))
    assert str(error.value) == (
        f"{tmp_path} started with strategy=fedavg (now fedprox), schedule=constant (now step), "
        "channel=[] (now [clip]), local.epochs=5 (now 3); a resumed run must give the numbers that it started with; "
        "leave out strategy=fedprox schedule=step strategy.server.proximal_mu=1 local.epochs=3 'channel=[clip]', "
        "or start a new run"
    )


def test_more_rounds_equal_those_of_a_longer_run(tmp_path, whole):
    longer = conduct(tmp_path / "longer", *SCAFFOLD, "federation.num_rounds=6")
    resumed = shutil.copytree(whole, tmp_path / "resumed")
    conduct(resumed, *SCAFFOLD, "federation.num_rounds=6")
    assert outcome(resumed) == outcome(longer)
    with pytest.raises(
        InputError, match=r"after 6 rounds, got federation.num_rounds=5, which is fewer; try federation.num_rounds=6"
    ):
        conduct(resumed, *SCAFFOLD, "federation.num_rounds=5")


def test_more_rounds_that_change_finished_ones_are_rejected(tmp_path):
    run = conduct(tmp_path / "run", "schedule=cosine", "federation.num_rounds=2")
    before = (run / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"with federation.num_rounds=4 the learning rate of round 2"):
        conduct(run, "schedule=cosine")
    assert (run / "run.json").read_bytes() == before


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run_stays_unchanged(tmp_path, whole, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    before = files_of(run)
    conduct(run, *SCAFFOLD)
    assert files_of(run) == before
    assert "is finished after 4 rounds: nothing to do" in capsys.readouterr().out


def test_a_run_ends_with_the_round_that_reaches_the_target_also_on_resume(tmp_path, whole):
    accuracies = [row["eval/accuracy"] for row in rows_of(whole)]
    target = max(accuracies[1:4])
    first = accuracies.index(target, 1)
    options = [*SCAFFOLD, f"federation.target_accuracy={target}"]
    run = conduct(tmp_path / "run", *options)
    assert first < 4
    assert rows_of(run) == rows_of(whole)[: first + 1]
    assert read_record(run)["status"] == "finished"
    with pytest.raises(
        InputError, match=rf"after {first} rounds, got federation.num_rounds=3, which is fewer; .*rounds=4"
    ):
        conduct(run, *options, "federation.num_rounds=3")
    again = conduct(killed(run, tmp_path / "again", checkpoint=first), *options)
    assert rows_of(again) == rows_of(run)
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    longer = conduct(run, *options, "federation.num_rounds=9")
    assert rows_of(longer) == rows_of(again)


def test_a_target_accuracy_without_classes_is_rejected(compose):
    with pytest.raises(InputError, match=r"target_accuracy=0.9 needs classes, and dataset=diabetes has none"):
        compose("dataset=diabetes", "federation.target_accuracy=0.9")


def test_a_finished_run_with_missing_rows_is_rejected(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged: it has 0 rounds, and run.json says 4"):
        conduct(run, *SCAFFOLD)
    assert load(run)[0].state == "damaged"


@pytest.mark.parametrize("nonfinite", ["stop", "keep"])
def test_a_diverged_run_stays_unchanged(tmp_path, capsys, nonfinite):
    options = ["optimizer.lr=1e30", f"federation.nonfinite={nonfinite}"]
    if nonfinite == "stop":
        with pytest.raises(InputError, match=r"are not finite in round \d; try a smaller optimizer.lr"):
            conduct(tmp_path / "run", *options)
    else:
        conduct(tmp_path / "run", *options)
    before = files_of(tmp_path / "run")
    assert read_record(tmp_path / "run")["status"] == "diverged"
    conduct(tmp_path / "run", *options)
    assert files_of(tmp_path / "run") == before
    assert "is diverged after" in capsys.readouterr().out


@pytest.mark.parametrize("nonfinite", ["drop", "keep"])
def test_nonfinite_updates_resume_to_the_same_bits(tmp_path, monkeypatch, nonfinite):
    """From one client with few samples and an infinite loss."""
    make_fail(monkeypatch, lambda model: [p.data.fill_(np.nan) for p in model.parameters()])
    check_resumed(tmp_path, f"federation.nonfinite={nonfinite}", *SCAFFOLD)
    rows = rows_of(tmp_path / "resumed")
    if nonfinite == "drop":
        assert {row["clients/dropped"] for row in rows[1:]} == {0, 1}
        assert rows[-1]["eval/loss"] is not None
    else:
        assert rows[-1]["eval/loss"] is None
        assert read_record(tmp_path / "resumed")["status"] == "diverged"


def make_fail(monkeypatch, fail):
    """Change the model after each training of the smallest partition."""
    from fedresearch.experiment.experiment import Experiment

    composed, choices, *_ = config.compose(CONF, [*MLP, *SHORT])
    sizes = sorted(len(rows) for rows in Experiment(composed, choices).data.train)
    assert sizes[0] < sizes[1]
    train = LocalTrainer.__call__

    def failing(trainer, task):
        end = train(trainer, task)
        if len(task.y) == sizes[0]:
            fail(trainer.model)
        return end

    monkeypatch.setattr(LocalTrainer, "__call__", failing)


def raise_it(model):
    raise ArithmeticError("not today")


def test_failures_are_allowed_counted_and_saved_once(tmp_path, monkeypatch):
    make_fail(monkeypatch, raise_it)
    with pytest.raises(InputError, match=r"the client of partition \d failed in round \d: ArithmeticError: not today"):
        conduct(tmp_path / "refused", *SCAFFOLD)
    check_resumed(tmp_path, "federation.max_failures=1", *SCAFFOLD, row=3)
    conduct(tmp_path / "refused", "federation.max_failures=1", *SCAFFOLD)  # as its error said
    assert rows_of(tmp_path / "refused") == rows_of(tmp_path / "resumed")
    rows = rows_of(tmp_path / "resumed")
    assert {row["clients/failed"] for row in rows[1:]} == {0, 1}
    lines = (tmp_path / "resumed" / "failures.jsonl").read_text().splitlines()
    failures = [json.loads(line) for line in lines]
    assert [failure["round"] for failure in failures] == [row["round"] for row in rows[1:] if row["clients/failed"]]
    assert all(failure["doing"] == "train" and "not today" in failure["error"] for failure in failures)


def test_a_failed_run_resumes_after_the_fault_is_fixed(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        make_fail(patch, raise_it)
        with pytest.raises(InputError, match=r"its traceback is in .*failures.jsonl; fix it and resume with resume="):
            conduct(tmp_path / "run", *SCAFFOLD)
    assert read_record(tmp_path / "run")["status"] == "failed"
    conduct(tmp_path / "run", *SCAFFOLD)
    assert outcome(tmp_path / "run") == outcome(whole)
    assert (tmp_path / "run" / "failures.jsonl").read_text() == ""


def test_a_checkpoint_with_another_format_is_rejected(tmp_path, whole, monkeypatch):
    run = killed(whole, tmp_path / "run", checkpoint=3)
    with monkeypatch.context() as patch:
        patch.setattr("fedresearch.runs.checkpoint.FORMAT", "2")
        with pytest.raises(
            InputError, match=r"round_000003.safetensors has format 1, and .* reads format 2; resume with"
        ):
            conduct(run, *SCAFFOLD)


def test_a_best_round_by_a_missing_column_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint.best=eval/acc is not a column .*, eval/accuracy"):
        conduct(tmp_path / "run", "checkpoint.best=eval/acc")


@pytest.mark.parametrize(
    "key", ["data_sha256", "partition_sha256", "validation_sha256", "initial_model_sha256", "sampling_sha256"]
)
def test_changed_data_weights_or_cohorts_are_rejected(tmp_path, whole, key):
    run = killed(whole, tmp_path / "run", checkpoint=2)
    (run / "run.json").write_text(dump_record({**read_record(run), key: "0" * 64}))
    before = files_of(run)
    with pytest.raises(InputError, match=rf"{key} is {read_record(whole)[key]}, and was {'0' * 64} when the run st"):
        conduct(run, *SCAFFOLD)
    assert files_of(run) == before


def test_a_checkpoint_with_the_name_of_another_round_is_not_used(tmp_path, whole, caplog):
    run = killed(whole, tmp_path / "run", checkpoint=2)
    (run / "checkpoints" / "round_000001.safetensors").rename(run / "checkpoints" / "round_000002.safetensors")
    conduct(run, *SCAFFOLD)
    assert "round_000002.safetensors is damaged and is not used" in caplog.text
    assert outcome(run) == outcome(whole)


def test_rows_are_on_disk_before_the_checkpoint_that_needs_them(tmp_path, monkeypatch):
    done = []
    sync, write = RunDirectory.sync, checkpoints.write_checkpoint
    monkeypatch.setattr(RunDirectory, "sync", lambda run: (sync(run), done.append(run.history.num_rounds)))
    monkeypatch.setattr(
        checkpoints, "write_checkpoint", lambda *arguments: (done.append("checkpoint"), write(*arguments))
    )
    conduct(tmp_path / "run", "federation.num_rounds=2")
    assert done == [1, "checkpoint", 2, "checkpoint"]


def test_of_equally_good_rounds_the_first_is_kept(tmp_path, monkeypatch):
    scores = iter([0.9, 0.1, 0.2, 0.2])  # the first is of the initial model, which is no round
    monkeypatch.setattr(Experiment, "evaluate", lambda *_: {"eval/loss": 1.0, "eval/accuracy": next(scores, 0.2)})
    run = conduct(tmp_path / "run", "checkpoint.best=eval/accuracy", "federation.num_rounds=3")
    assert b'"round":"2"' in (run / "best.safetensors").read_bytes()


def test_the_round_that_reaches_the_target_has_a_checkpoint(tmp_path):
    run = conduct(tmp_path / "run", "federation.target_accuracy=0.01", "checkpoint.every=3")
    assert rounds_of_checkpoints(run) == [1]


def test_the_newest_checkpoints_are_kept(tmp_path):
    run = conduct(tmp_path / "run", "checkpoint.keep=2")
    assert rounds_of_checkpoints(run) == [3, 4]
    assert rounds_of_checkpoints(conduct(tmp_path / "third", "checkpoint.every=3")) == [3, 4]


@pytest.mark.parametrize(
    ("before", "after"), [("train/loss", "eval/loss"), ("null", "train/loss"), ("train/loss", "null")]
)
def test_a_best_round_by_another_column_is_rejected_since_models_are_gone(tmp_path, before, after):
    short = ["federation.num_rounds=2", f"checkpoint.best={before}"]
    run = conduct(tmp_path / "run", *short)
    for num_rounds in (2, 3):  # nothing left to do, and one more
        with pytest.raises(InputError, match=f"checkpoint.best is {after}, and was {before} in the 2 rounds"):
            conduct(run, f"federation.num_rounds={num_rounds}", f"checkpoint.best={after}")
    conduct(run, "federation.num_rounds=3", f"checkpoint.best={before}")
    assert rows_of(run)[-1]["round"] == 3


@pytest.mark.parametrize("column", ["eval/loss", "clients/accuracy_mean"])
def test_the_best_model_is_kept_across_a_resume(tmp_path, column):
    options = ["federation.num_rounds=6", "optimizer.lr=2.0", f"checkpoint.best={column}"]
    undisturbed = conduct(tmp_path / "whole", *options)
    scores = [row[column] if column == "clients/accuracy_mean" else -row[column] for row in rows_of(undisturbed)[1:]]
    best = scores.index(max(scores)) + 1
    content = (undisturbed / "best.safetensors").read_bytes()
    assert f'"round":"{best}"'.encode() in content
    for checkpoint in {best - 1, best % 6}:
        resumed = killed(undisturbed, tmp_path / str(checkpoint), checkpoint=checkpoint)
        if best > checkpoint:
            (resumed / "best.safetensors").unlink()
        conduct(resumed, *options)
        assert (resumed / "best.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("random.Random(0)", "is a Random"),
        ("collections.OrderedDict(a=1)", "is a OrderedDict"),
        ("collections.Counter('aab')", "is a Counter"),
        ("np.random.default_rng(0)", "is a Generator"),
        ("[Part(iter([]))]", r"\.0 is a Part"),
        ("Part(iter([]))", r"\.value is a list_iterator"),
        ("Slots()", "is a Slots"),
        ("np.array(['a'])", "is an array of <U1"),
    ],
)
def test_a_state_that_a_checkpoint_cannot_hold_is_rejected_before_the_run(tmp_path, monkeypatch, value, where):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "keeping.py").write_text(
        textwrap.dedent(
            f"""
            import collections, random
            import numpy as np
            from flwr.serverapp.strategy import FedAvg

            class Part:
                def __init__(self, value):
                    self.value = value

            class Slots:
                __slots__ = ("value", "__dict__")

            class Keeping(FedAvg):
                def __init__(self, **options):
                    super().__init__(**options)
                    self.kept = {value}
            """
        )
    )
    (tmp_path / "strategy" / "keeping.yaml").write_text(
        "defaults: [_cohort, _self_]\nserver: {_target_: keeping.Keeping}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "keeping", raising=False)
    with pytest.raises(InputError, match=rf"strategy\.kept\S* ?{where}.*try checkpoint.every=0|kept.*{where}"):
        conduct(tmp_path / "run", "strategy=keeping", config_dir=tmp_path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "run.json").exists()
    conduct(tmp_path / "run", "strategy=keeping", "checkpoint.every=0", config_dir=tmp_path)


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGUSR1, 1), (signal.SIGUSR2, 2)],
)
def test_a_signal_ends_the_run_after_its_round_and_two_at_once(tmp_path, monkeypatch, whole, number, times):
    train, done = LocalTrainer.__call__, []

    def signalled(trainer, task):
        done.append(len(task.y))
        if len(done) == 6:  # the first may be the rehearsal's; three clients train in a round
            for _ in range(times):
                os.kill(os.getpid(), number)
        return train(trainer, task)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "__call__", signalled)
        with pytest.raises(KeyboardInterrupt):
            conduct(run, *SCAFFOLD, "checkpoint.every=1000")
    assert len(done) == 6 + (1 if times == 1 and len(done) % 3 else 0)
    assert read_record(run)["status"] == "interrupted"
    assert [row["round"] for row in read_rows(run)] == ([0, 1, 2] if times == 1 else [0, 1])
    assert rounds_of_checkpoints(run) == [2] if times == 1 else not (run / "checkpoints").exists()
    conduct(run, *SCAFFOLD)
    assert outcome(run) == outcome(whole)
