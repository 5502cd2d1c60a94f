"""Directories made to have code run by who only reads them: nothing that a record or a file of it names is run."""

import copy
import hashlib
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from fedresearch import load_model
from fedresearch.errors import InputError
from fedresearch.runs.record import FINAL, read_record
from fedresearch.study import tune
from fedresearch.study.compare import compare
from fedresearch.study.report.files import write
from fedresearch.study.report.load import load
from fedresearch.study.sweep.status import show
from tests.conftest import LONG
from tests.damages import rewritten
from tests.directories import conduct
from tests.records import report

CANARY = "canary"  # a folder in the current one, which no reader makes


class Payload:
    def __reduce__(self):
        return os.mkdir, (CANARY,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory of a run whose clients have models of their own; to be copied, not written to."""
    options = ["strategy=fedrep", "federation.num_rounds=1", "checkpoint.best=personal/accuracy"]
    return conduct(tmp_path_factory.mktemp("runs") / "whole", *options)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(readers):
    """Let readers read; return the names of those that refused."""
    refused = set()
    for name, reader in readers.items():
        try:
            reader()
        except InputError:
            refused.add(name)
        assert not Path(CANARY).exists(), f"{name} ran code"
    return refused


def read_run(whole, directory):
    return read(
        {
            "model": lambda: load_model(directory),
            "best": lambda: load_model(directory, best=True),
            "client": lambda: load_model(directory, 0),
            "compare": lambda: compare(whole, directory),
            "compared": lambda: compare(directory, whole),
        }
    )


def read_folder(folder):
    def runs():
        return [run for run in load([folder]) if run.state in FINAL]

    return read(
        {
            "status": lambda: show(folder),
            "report": lambda: write(report(runs()), Path("report")),
            "tune": lambda: tune.choose(runs(), "optimizer.lr", "last"),
        }
    )


def test_the_canary_sings(tmp_path):
    """What the directories name does run where it is run."""
    from hydra.utils import instantiate

    for run in (
        lambda: instantiate({"_target_": "os.mkdir", "path": CANARY}),
        lambda: pickle.loads(pickle.dumps(Payload())),
    ):
        run()
        (tmp_path / CANARY).rmdir()


def places(section, where=()):
    """Yield the path of each key in nested sections."""
    for key, value in section.items():
        yield (*where, key)
        if isinstance(value, dict):
            yield from places(value, (*where, key))


HOSTILE = {"_target_": "os.mkdir", "path": CANARY}
FORMS = [
    HOSTILE,
    [HOSTILE],
    {"x": [HOSTILE]},
    {**HOSTILE, "_partial_": True},
    {"_target_": "builtins.exec", "_args_": [f"import os; os.mkdir({CANARY!r})"]},
    {"_target_": "os.system", "command": f"mkdir {CANARY}"},
    {"_target_": "hydra.utils.call", "config": HOSTILE},
    "${oc.env:HOME}",
]
MODELS = [{}, {"client": 0}, {"best": True}]


@pytest.mark.filterwarnings("ignore")
def test_no_value_of_a_record_is_built(tmp_path, whole):
    """Each key of the record and of its config, one at a time: what else is there lets a reader come to it."""
    directory = shutil.copytree(whole, tmp_path / "run")
    record = read_record(whole)
    refused = 0
    for place in places({name: record[name] for name in ("choices", "config", "git", "result") if name in record}):
        for form in FORMS if LONG else FORMS[:2]:

            def change(fields, place=place, form=form):
                fields.clear()
                fields.update(copy.deepcopy(record), format=1)
                *above, last = place
                for key in above:
                    fields = fields[key]
                fields[last] = {**fields[last], **form} if isinstance(fields[last], dict) and form == HOSTILE else form

            rewritten(directory, change)
            for which in MODELS if LONG else MODELS[:1]:
                try:
                    load_model(directory, **which)
                except InputError:
                    refused += 1
            with suppress(InputError):
                compare(whole, directory)
            assert not (tmp_path / CANARY).exists(), (place, form)
    assert refused


@pytest.mark.filterwarnings("ignore")
def test_what_is_loaded_has_its_given_arguments_as_they_are(tmp_path, whole):
    """The dataset's declared shape and classes are arguments of the model, and not of its section."""
    for number, declared in enumerate(({"num_classes": HOSTILE}, {"input_shape": [HOSTILE]})):
        directory = shutil.copytree(whole, tmp_path / f"{number}")
        rewritten(directory, lambda fields, new=declared: fields["config"]["dataset"]["declares"].update(new))
        assert {"model", "best", "client"} <= read_run(whole, directory)


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_and_no_module_of_a_directory_is_run(tmp_path, whole):
    content = pickle.dumps(Payload())
    names = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and path.name != "run.json"]
    for number, name in enumerate(sorted(names)):
        directory = shutil.copytree(whole, tmp_path / "sweep" / f"{number}")
        (directory / name).write_bytes(content)
    last = shutil.copytree(whole, tmp_path / "sweep" / "other")
    for name in ("model.pt", "model.pkl", "checkpoints/round_000009.pt", "metrics.pkl", "partition.npy"):
        (last / name).write_bytes(content)
    code = f"import os; os.mkdir({CANARY!r})\n"
    for name in ("sitecustomize.py", "conftest.py", "__init__.py", "hubconf.py", "torch.py", "fedresearch.py"):
        (last / name).write_text(code)
    (last / ".hydra").mkdir()
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        (last / ".hydra" / name).write_text(f"x: !!python/object/apply:os.mkdir [{CANARY}]\n")
    for directory in sorted((tmp_path / "sweep").iterdir()):
        read_run(whole, directory)
    read_folder(tmp_path / "sweep")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "row",
    [{"eval/accuracy": HOSTILE}, {"_target_": "os.mkdir", "path": CANARY}, {"eval/accuracy": "${oc.env:HOME}"}],
    ids=["a value", "the row", "an interpolation"],
)
def test_no_row_is_built(tmp_path, whole, row):
    directory = shutil.copytree(whole, tmp_path / "sweep" / "run")
    content = json.dumps({"round": 1, **row}).encode() + b"\n"
    (directory / "metrics.jsonl").write_bytes(content)
    rewritten(directory, lambda fields: fields.update(metrics_sha256=hashlib.sha256(content).hexdigest()))
    read_run(whole, directory)
    read_folder(tmp_path / "sweep")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "job", [HOSTILE, {"overrides": [HOSTILE], "directory": "run"}, {**HOSTILE, "directory": "run"}]
)
def test_no_job_of_a_sweep_is_built(tmp_path, whole, job):
    shutil.copytree(whole, tmp_path / "sweep" / "run")
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps([{"overrides": [], **job}]))
    read_folder(tmp_path / "sweep")
