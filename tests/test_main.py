"""The command, end to end, in separate processes."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedresearch.errors import MarkedFormatter
from tests import warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHORT = ["tracker=none", "federation.num_rounds=3", "local.epochs=1"]


def environment(cwd, **more):
    clean = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WANDB_MODE")}
    return {**clean, "PYTHONPATH": str(ROOT), "HOME": str(cwd), **more}


def command(cwd, *overrides, **more):
    """Run the command line in a folder, and return the finished process."""
    return warm.python("-m", "fedresearch.main", *overrides, cwd=cwd, env=environment(cwd, **more))


def start(cwd, *overrides):
    """Start the command line in a folder."""
    return warm.Command("-m", "fedresearch.main", *overrides, cwd=cwd, env=environment(cwd))


def numbers(directory):
    """Return a run's rows without their times."""
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def record(directory):
    return json.loads((directory / "run.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three rounds."""
    cwd = tmp_path_factory.mktemp("finished")
    done = command(cwd, *SHORT)
    assert done.returncode == 0, done.stderr
    (directory,) = (cwd / "outputs").iterdir()
    return directory, done


def test_a_run_leaves_its_record_metrics_model_and_partition(finished):
    directory, done = finished
    assert sorted(p.name for p in directory.iterdir() if p.suffix != ".diff") == [
        ".lock",
        "checkpoints",
        "clients.jsonl",
        "confusion.csv",
        "metrics.jsonl",
        "model.safetensors",
        "partition.csv",
        "partition.svg",
        "run.json",
    ]
    assert done.stdout.splitlines()[-1] == str(directory)
    assert not done.stderr
    run = record(directory)
    rows = numbers(directory)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert run["status"] == "finished"
    assert run["choices"]["strategy"] == "fedavg"
    assert run["overrides"] == SHORT
    assert run["config"]["federation"]["num_rounds"] == 3
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"flwr", "flwr-datasets", "hydra-core", "numpy"} <= run["versions"].keys()
    assert run["result"]["model/sha256"] == rows[-1]["model/sha256"]
    assert run["result"]["eval/accuracy"] == rows[-1]["eval/accuracy"]
    assert run["num_threads"] == 1
    assert run["num_parameters"] == 64 * 200 + 200 + 200 * 10 + 10
    table = list(csv.DictReader((directory / "partition.csv").read_text().splitlines()))
    assert len(table) == 10
    for line in table:
        size, validation = int(line["num_examples"]), int(line["num_validation"])
        assert validation == -(-size // 5)  # a fifth, rounded up
        assert int(line["num_train"]) == size - validation
        assert size == sum(int(line[str(c)]) for c in range(10))
    assert sum(int(line["num_examples"]) for line in table) == 1437  # 1,797 less a fifth for the test split


def test_the_model_loads_back_as_a_module(finished):
    from flwr.app import ArrayRecord

    from fedresearch import load_model
    from fedresearch.data import digits
    from fedresearch.federation.records import sha256

    directory, _ = finished
    model = load_model(directory)
    assert not model.training
    assert sha256(ArrayRecord(model.state_dict())) == numbers(directory)[-1]["model/sha256"]
    test = digits.load().test
    with torch.no_grad():
        accuracy = (model(test.x).argmax(1) == test.y).float().mean().item()
    assert accuracy == pytest.approx(numbers(directory)[-1]["eval/accuracy"], abs=1e-6)


def test_a_directory_without_a_model_is_named(tmp_path):
    from fedresearch import load_model
    from fedresearch.errors import InputError

    with pytest.raises(InputError, match=r"holds no model\.safetensors: it is not the directory of a finished run"):
        load_model(tmp_path)


def test_a_used_directory_is_rejected_and_stays_unchanged(finished, tmp_path):
    directory, _ = finished
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    done = command(tmp_path, *SHORT, f"hydra.run.dir={directory}")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {directory} already holds a run (status: finished), and nothing is overwritten; "
        "try another hydra.run.dir, or leave it out for a new directory\n"
    )
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", [["hydra.run.dir="], ["-m", "seed=0,1", "hydra.sweep.dir="]], ids=" ".join)
def test_an_empty_directory_name_is_rejected_and_nothing_is_written(tmp_path, words):
    done = command(tmp_path, *SHORT, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {words[-1].rstrip('=')} is empty; leave it out for")
    assert [*tmp_path.iterdir()] == []


def test_a_run_resumes_only_in_its_own_directory(finished, tmp_path):
    directory, _ = finished
    done = command(tmp_path, f"resume={directory}", "hydra.run.dir=other")
    assert done.returncode == 1
    assert done.stderr == ("error: resume continues in the run's own directory; remove hydra.run.dir\n")


def test_of_two_commands_that_start_in_one_directory_one_runs(tmp_path):
    with start(tmp_path, *SHORT, "hydra.run.dir=both") as one, start(tmp_path, *SHORT, "hydra.run.dir=both") as other:
        errors = {process.wait(): process.printed()[1] for process in (one, other)}
    assert errors.keys() == {0, 1}
    refused = errors[1]
    # The second waits a moment for the first, or starts after it has finished.
    assert "is being run by another process" in refused or "already holds a run" in refused
    assert record(tmp_path / "both")["status"] == "finished"
    assert [row["round"] for row in numbers(tmp_path / "both")] == [0, 1, 2, 3]


def test_same_seed_same_bits_and_only_caches_are_written_elsewhere(finished, tmp_path):
    """In another process, with another working directory, hash seed and number of threads."""
    directory, _ = finished
    words = [sys.executable, "-m", "fedresearch.main", *SHORT, "hydra.run.dir=again"]
    env = environment(tmp_path, PYTHONHASHSEED="12", OMP_NUM_THREADS="2")
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "again") == numbers(directory)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    for key in ("digest", "cell", "partition_sha256", "validation_sha256", "initial_model_sha256"):
        assert record(tmp_path / "again")[key] == record(directory)[key]
    assert (tmp_path / "again" / "partition.svg").read_text() == (directory / "partition.svg").read_text()
    assert {p.name for p in tmp_path.iterdir()} <= {"again", ".cache", ".config"}
    assert not [p for p in tmp_path.glob(".config/**/*") if p.is_file()]


def test_another_seed_differs_in_everything_random(finished, tmp_path):
    directory, _ = finished
    assert command(tmp_path, *SHORT, "seed=1", "hydra.run.dir=other").returncode == 0
    ours, other = record(directory), record(tmp_path / "other")
    assert ours["cell"] == other["cell"]
    for key in ("digest", "partition_sha256", "initial_model_sha256"):
        assert ours[key] != other[key]
    assert numbers(directory)[0]["model/sha256"] != numbers(tmp_path / "other")[0]["model/sha256"]


@pytest.mark.parametrize(
    "change",
    [
        ["federation.num_rounds=5"],
        ["tracker=tensorboard"],
        ["tracker=wandb"],
        ["federation.evaluate_every=2"],
        ["federation.fraction_evaluate=0.3"],
        ["federation.evaluate_initial=false"],
    ],
    ids=lambda change: change[0],
)
def test_keys_that_must_not_change_a_round_do_not_change_it(finished, tmp_path, change):
    directory, _ = finished
    done = command(tmp_path, *SHORT, *change, "hydra.run.dir=changed")
    assert done.returncode == 0, done.stderr
    before, after = numbers(directory), numbers(tmp_path / "changed")
    assert [row["round"] for row in before] == [0, 1, 2, 3]
    for ours, changed in zip(before[1:], after[after[0]["round"] == 0 :], strict=False):
        shared = ours.keys() & changed.keys()
        if change[0].startswith(("federation.fraction_evaluate", "federation.evaluate_every")):
            # These change which clients evaluate: only the measures of clients and the bytes for them change.
            shared -= {key for key in shared if key.startswith(("clients/", "comm/evaluate_"))}
            assert {"train/loss", "update/norm", "comm/bytes_up_total", "model/sha256"} <= shared
        else:
            assert ours.keys() == changed.keys()
        assert {key: ours[key] for key in shared} == {key: changed[key] for key in shared}


def test_the_last_round_is_always_evaluated(finished, tmp_path):
    directory, _ = finished
    assert command(tmp_path, *SHORT, "federation.evaluate_every=2", "hydra.run.dir=d").returncode == 0
    assert ["eval/loss" in row for row in numbers(tmp_path / "d")] == [True, False, True, True]
    assert record(tmp_path / "d")["result"]["eval/loss"] == numbers(directory)[-1]["eval/loss"]


def test_a_sweep_has_a_directory_for_each_job_and_flags_may_be_anywhere(tmp_path):
    done = command(tmp_path, *SHORT, "-m", "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    one, other = (path.parent for path in (tmp_path / "sweep").glob("*/run.json"))
    assert {record(job)["config"]["seed"] for job in (one, other)} == {0, 1}
    assert [job.name for job in (one, other)] == [record(job)["digest"] for job in (one, other)]
    assert numbers(one) != numbers(other)


MODELS = """
import torch

class Sums(torch.nn.Module):
    \"""Sums each image, with a chosen fault.\"""

    def __init__(self, input_shape, num_classes, fault=None):
        super().__init__()
        if fault == "width":
            self.linear = torch.nn.Linear(3, num_classes)
        w = torch.zeros(num_classes, 2).t() if fault == "transposed" else torch.zeros(2, num_classes)
        self.w = torch.nn.Parameter(w)
        self.norm = torch.nn.BatchNorm1d(num_classes) if fault == "norm" else torch.nn.Identity()
        self.fault, self.calls = fault, 0

    def forward(self, x):
        self.calls += 1
        if self.fault == "later" and self.calls > 20:
            raise ArithmeticError("not today")
        x = x.flatten(1)
        return self.linear(x) if self.fault == "width" else self.norm(torch.stack([x.sum(1), x.sum(1)], 1) @ self.w)
"""


@pytest.fixture
def faulty(tmp_path):
    """Return a function that runs the model above."""
    (tmp_path / "sums.py").write_text(MODELS)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "sums.yaml").write_text("# Sums\n_target_: sums.Sums\nfault: null\n")

    def run(fault, *overrides):
        arguments = [
            "--config-dir",
            "conf",
            "model=sums",
            f"model.fault={fault}",
            *SHORT,
            "hydra.run.dir=d",
            *overrides,
        ]
        return command(tmp_path, *arguments, PYTHONPATH=f"{ROOT}:{tmp_path}")

    return run


def test_a_client_that_fails_ends_the_run_and_the_record_says_why(faulty, tmp_path):
    done = faulty("later")
    assert done.returncode == 1
    assert "ArithmeticError: not today" in done.stderr  # the client's whole traceback
    assert record(tmp_path / "d")["status"] == "failed"
    assert "failed in round 1" in record(tmp_path / "d")["error"]


def test_a_model_that_cannot_train_is_reported_before_the_run(faulty, tmp_path):
    done = faulty("width")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: model=sums cannot train on dataset=digits with strategy=fedavg: mat1 and mat2 shapes cannot be mul"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "d").exists()


def test_a_last_batch_of_one_that_batch_norm_rejects_is_reported_before_the_run(faulty):
    sizes = ["partitioner=size", "partitioner.partition_sizes=[30,21,31]", "validation.fraction=0"]
    done = faulty("norm", *sizes, "federation.fraction_evaluate=0")
    assert done.returncode == 1
    assert "(the last batch of partitions [1, 2] is one sample; try another local.batch_size)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_parameters_in_any_memory_order_are_saved(faulty, tmp_path):
    done = faulty("transposed")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / "model.safetensors").exists()


def test_a_module_that_cannot_be_found(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sums.yaml").write_text("_target_: sums.Sums")
    done = command(tmp_path, "--config-dir", str(tmp_path), "model=sums", *SHORT)
    assert done.returncode == 1
    where = "run from the folder that holds it, or add that to PYTHONPATH"
    assert done.stderr == f"error: model=sums: module sums does not exist; {where}\n"


def test_divergence_is_reported_once_and_stays_valid_json(tmp_path):
    done = command(tmp_path, *SHORT, "optimizer.lr=1e30", "federation.nonfinite=keep", "hydra.run.dir=d")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: round 1: the loss is not finite, the run has diverged\n"
    assert record(tmp_path / "d")["status"] == "diverged"
    for name in ("run.json", "metrics.jsonl"):
        text = (tmp_path / "d" / name).read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
    assert numbers(tmp_path / "d")[-1]["eval/loss"] is None


CLOSED = """
import os, runpy
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
runpy.run_module("fedresearch.main", run_name="__main__", alter_sys=True)
"""


def test_a_closed_output_does_not_end_the_run(tmp_path):
    done = warm.python("-c", CLOSED, *SHORT, "hydra.run.dir=d", cwd=tmp_path, env=environment(tmp_path))
    assert not done.stdout
    assert record(tmp_path / "d")["status"] == "finished", done.stderr
    assert numbers(tmp_path / "d")[-1]["round"] == 3


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "partition.csv").write_text("mine")
    done = command(tmp_path, *SHORT, "hydra.run.dir=d")
    assert done.returncode == 1
    assert "d already holds partition.csv, and nothing is overwritten" in done.stderr
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["partition.csv"]


@pytest.mark.parametrize(
    ("level", "mark"), [("INFO", ""), ("WARNING", "warning: "), ("ERROR", "error: "), ("CRITICAL", "critical: ")]
)
def test_the_log_marks_warnings_and_errors(level, mark):
    record = logging.makeLogRecord({"msg": "split %s", "args": ("train",), "levelname": level})
    record.levelno = logging.getLevelNamesMapping()[level]
    assert MarkedFormatter("%(message)s").format(record) == f"{mark}split train"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["+optimizer.foo=1"],
            "error: optimizer=sgd: optimizer.foo is not an argument of SGD; leave it out; its arguments ",
        ),
        (
            ["partitioner.min_partition_size=1000"],
            "error: DirichletPartitioner cannot partition 1437 samples with these",
        ),
    ],
)
def test_errors_of_a_constructor_are_reported_in_one_line_too(tmp_path, overrides, line):
    done = command(tmp_path, *SHORT, *overrides)
    assert done.returncode == 1
    assert done.stderr.startswith(line), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_is_reported_in_one_line(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", full], capture_output=True)
    if mounted.returncode:
        pytest.skip("this sandbox mounts nothing")
    try:
        done = command(tmp_path, *SHORT, f"hydra.run.dir={full}/run")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {full}/run has 0 MB free, and the run needs 2 MB or more;")
        assert "Traceback" not in done.stderr
        assert not list(full.rglob(".*tmp"))
    finally:
        subprocess.run(["umount", full], check=True)


def test_an_unwritable_directory_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = command(tmp_path, *SHORT, "hydra.run.dir=file/run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: "), done.stderr
    assert "file/run" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_natural_ids_set_the_number_of_clients_without_chatter(tmp_path):
    done = command(tmp_path, *SHORT, "dataset=fcube", "partitioner=natural_id", "model=logistic", "hydra.run.dir=d")
    assert done.returncode == 0
    assert not done.stderr
    assert len((tmp_path / "d" / "partition.csv").read_text().splitlines()) == 1 + 4


def test_tiny_and_empty_partitions_are_reported_by_id(tmp_path):
    done = command(
        tmp_path,
        *SHORT,
        "partitioner.alpha=0.02",
        "partitioner.min_partition_size=0",
        "federation.num_supernodes=40",
        "hydra.run.dir=d",
    )
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader((tmp_path / "d" / "partition.csv").read_text().splitlines()))
    empty = [line["partition_id"] for line in table if int(line["num_train"]) == 0]
    tiny = [line["partition_id"] for line in table if 0 < int(line["num_train"]) < 10]
    assert len(empty) > 1
    assert len(tiny) > 1
    lines = done.stderr.splitlines()
    assert lines[0] == f"warning: partitions {', '.join(empty)} are empty and never sampled"
    assert lines[1] == f"warning: partitions {', '.join(tiny)} hold less than one batch of 10 training samples"


@pytest.mark.parametrize("word", ["resume=nowhere", "+resume=nowhere", "++resume=nowhere"])
def test_a_run_to_resume_is_found_in_any_spelling(tmp_path, monkeypatch, capsys, word):
    from fedresearch.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main", word, "tracker=none"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "error: nowhere does not exist; name a run's directory, such as outputs/DATE_TIME" in capsys.readouterr().err


def test_a_worker_that_imports_a_script_says_what_the_script_lacks(monkeypatch, capsys):
    import multiprocessing

    from fedresearch.main import main

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # as in a worker's start
    monkeypatch.setattr(sys, "argv", ["main", "tracker=none"])
    with pytest.raises(SystemExit):
        main()
    assert 'put the call below if __name__ == "__main__":' in capsys.readouterr().err
