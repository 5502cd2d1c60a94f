"""The trackers, read back with the readers of the tools that they write for."""

import io
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import matplotlib
import pytest
import yaml
from rich.console import Console as Terminal

from fedresearch.config import compose
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError
from fedresearch.runs.record import dump_record
from fedresearch.tracking import tensorboard
from fedresearch.tracking.console import Console
from fedresearch.tracking.mlflow_tracker import MlflowTracker
from fedresearch.tracking.tensorboard import TensorBoardTracker
from fedresearch.tracking.tracker import NoTracker, RunInfo, Tracker, TrackerGroup
from fedresearch.tracking.wandb_tracker import WandbTracker

FONTS = matplotlib.get_cachedir()  # matplotlib's own, which it makes where there is none
# Three rounds; the second does not evaluate, the third has a client that diverged.
ROWS: list[dict[str, Any]] = [
    {
        "round": server_round,
        "train/loss": train_loss,
        "eval/loss": eval_loss,
        "eval/accuracy": accuracy,
        "comm/bytes_up": 2**33,
        "model/sha256": f"{server_round:064x}",
        "clients/sampled": 60,
        "time/round_s": 0.5,
        "time/total_s": 0.5 * server_round,
    }
    for server_round, train_loss, eval_loss, accuracy in [
        (1, 0.75, 0.5, 0.25),
        (2, 0.5, None, None),
        (3, math.nan, 0.125, 0.875),
    ]
]
SUMMARY = {
    "round": 3,
    "best/round": 1,
    "eval/loss": 0.125,
    "eval/accuracy": 0.875,
    "train/loss": math.nan,
    "clients/evaluated": 9,
    "clients/accuracy_mean": 0.75,
    "clients/accuracy_worst": 0.5,
    "comm/bytes_up_total": 1_500_000,
    "comm/bytes_down_total": 3_000_000_000,
    "time/total_s": 200.4,
}


def run_info(directory: Path) -> RunInfo:
    directory.mkdir(exist_ok=True, parents=True)
    config = {"seed": 3, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "name": None}
    columns = {"strategy": "fedavg", "seed": 3, "lr": 0.1}
    tags = ["fedavg", "digits"]
    return RunInfo(directory, uuid4().hex, "FedAvg, seed 3", "FedAvg #0123", tags, config, columns, 3, ["accuracy"])


FILES = {
    "run.json": dump_record({"status": "finished", "config": {}, "choices": {}}),
    "partition.csv": "partition_id,num_examples,num_train,num_validation,0,1\n0,3,3,0,1,2\n1,2,2,0,2,0\n",
    "confusion.csv": "class,0,1\n0,3,1\n1,0,4\n",
    "clients.jsonl": '{"round": 3, "train": {"partition_id": [0]}, '
    '"evaluate": {"partition_id": [0, 1], "clients/accuracy": [0.25, 0.75]}}\n',
}
FIGURES = {"partition", "clients", "confusion"}


def track(tracker: Tracker, directory: Path, status: str = "finished") -> None:
    tracker.start(run_info(directory))
    for name, content in FILES.items():
        (directory / name).write_text(content)
    for row in ROWS:
        tracker.log(row)
    model = directory / "model.safetensors"
    model.write_bytes(b"weights")
    tracker.log_model(model)
    tracker.finish(status, SUMMARY)


@pytest.fixture(autouse=True)
def no_wandb_of_the_developer(monkeypatch, tmp_path):
    """No key, no mode, no home: what is configured on the machine that runs the tests does not count."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("MPLCONFIGDIR", FONTS)
    (tmp_path / "home").mkdir()


# --- the contract


@pytest.mark.parametrize("status", ["finished", "failed"])
@pytest.mark.parametrize("option", ["none", "tensorboard", "wandb-offline", "wandb-disabled", "console", "group"])
def test_every_tracker_takes_the_same_calls_and_writes_in_the_run_directory(option, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "home")
    build = {
        "none": NoTracker,
        "tensorboard": TensorBoardTracker,
        "wandb-offline": lambda: WandbTracker(mode="offline", log_model=True),
        "wandb-disabled": lambda: WandbTracker(mode="disabled"),
        "console": Console,
        "group": lambda: TrackerGroup([Console(), NoTracker()]),
    }[option]
    environment = dict(os.environ)
    track(build(), tmp_path / "run", status)
    assert dict(os.environ) == environment
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run"]
    assert not list((tmp_path / "home").iterdir())
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"model.safetensors", "wandb", "tensorboard", *FILES}


@pytest.mark.parametrize("error", [OSError("full"), SystemExit(1)])
def test_a_tracker_that_fails_is_not_called_again_and_the_others_continue(error, caplog):
    calls = []

    class Recorder(NoTracker):
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, row) -> None:
            calls.append(self.name)
            if self.name == "broken":
                raise error

        def finish(self, status, summary) -> None:
            calls.append((self.name, status))

    group = TrackerGroup([Recorder("first"), Recorder("broken"), Recorder("last")])
    group.start(RunInfo(Path(), "", "", "", [], {}, {}, 1))
    group.log({})
    group.log({})
    group.finish("interrupted", {})
    assert calls == ["first", "broken", "last", "first", "last", ("first", "interrupted"), ("last", "interrupted")]
    (line,) = caplog.messages
    assert line.startswith(f"Recorder failed and is switched off: {error!r} in {__file__}, line ")


def test_a_late_tracker_starts_after_the_others_have_the_first_row_and_also_for_a_run_without_one():
    calls = []

    class Recorder(NoTracker):
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self, run) -> None:
            calls.append((self.name, run.run_id))

        def log(self, row) -> None:
            calls.append((self.name, row["round"]))

        def finish(self, status, summary) -> None:
            calls.append((self.name, status))

    first, late = Recorder("first"), Recorder("late")
    for rounds in ([0, 1], []):
        group = TrackerGroup([first], [late])
        group.start(RunInfo(Path(), "id", "", "", [], {}, {}, 1), [late])
        for number in rounds:
            group.log({"round": number})
        group.finish("failed", {})
    assert calls == [
        *[("first", "id"), ("first", 0), ("late", "id"), ("late", 0), ("first", 1), ("late", 1)],
        *[("first", "failed"), ("late", "failed")],
        *[("first", "id"), ("first", "failed"), ("late", "id"), ("late", "failed")],
    ]


def test_mirrors_get_the_rows_of_a_second_together_and_all_before_the_end(monkeypatch):
    monkeypatch.setattr("fedresearch.tracking.tracker._MIRROR_EVERY_S", 1000.0)
    calls = []

    class Recorder(NoTracker):
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, row) -> None:
            calls.append((self.name, row["round"]))

        def finish(self, status, summary) -> None:
            calls.append((self.name, status))

    group = TrackerGroup([Recorder("console")], [Recorder("mirror")])
    group.start(RunInfo(Path(), "id", "", "", [], {}, {}, 4))
    for number in (1, 2, 3):
        group.log({"round": number})
    shown = [("console", 1), ("mirror", 1), ("console", 2), ("console", 3)]
    assert calls == shown
    group.finish("interrupted", {})
    assert calls == [*shown, ("mirror", 2), ("mirror", 3), ("console", "interrupted"), ("mirror", "interrupted")]


def test_an_interrupt_while_rows_are_mirrored_loses_no_later_row(monkeypatch):
    monkeypatch.setattr("fedresearch.tracking.tracker._MIRROR_EVERY_S", 1000.0)
    logged = []

    class Interrupted(NoTracker):
        def log(self, row) -> None:
            if row["round"] == 2:
                raise KeyboardInterrupt
            logged.append(row["round"])

    group = TrackerGroup([], [Interrupted()])
    for number in (1, 2, 3, 4):
        group.log({"round": number})
    with pytest.raises(KeyboardInterrupt):
        group.log_model(Path())
    group.finish("interrupted", {})
    assert logged == [1, 3, 4]


# --- Weights & Biases


def wandb_runs(directory: Path) -> list[Path]:
    return sorted((directory / "wandb").glob("offline-run-*"))


def inspect(run: Path) -> list[dict[str, Any]]:
    """Read a W&B run back with W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in printed.splitlines()]


def only(records: list[dict[str, Any]], kind: str) -> list[Any]:
    return [record[kind] for record in records if record["type"] == kind]


def test_wandb_offline_run_read_back(tmp_path, capfd):
    track(WandbTracker(mode="offline", tags=["mine"], log_model=True, log_clients=True), tmp_path / "run")
    (path,) = wandb_runs(tmp_path / "run")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == f"W&B: tracker.mode=offline; to upload it: wandb sync {path}\n"

    records = inspect(path)
    history = [item["item"] for item in only(records, "history")]
    media = {k: history[-1].pop(k) for k in [*history[-1]] if k.startswith("final/")}
    assert {name.partition("/")[2].partition(".")[0] for name in media} == {
        *FIGURES,
        "clients_histogram",
        "clients_table",
    }
    files = [path / "files" / media[f"final/{name}.path"] for name in (*FIGURES, "clients_table")]
    assert all(file.stat().st_size == media[f"final/{file.stem.split('_3_')[0]}.size"] for file in files)
    assert sum(media["final/clients_histogram.values"]) == 2
    # One row a round, with what was logged: no value and NaN are left out, W&B's own keys start with "_".
    assert [{k: v for k, v in item.items() if not k.startswith("_")} for item in history] == [
        ROWS[0],
        {k: v for k, v in ROWS[1].items() if v is not None},
        {k: v for k, v in ROWS[2].items() if k != "train/loss"},
    ]
    (run,) = only(records, "run")
    assert (run["project"], run["display_name"], run["run_group"], run["job_type"]) == (
        "fedresearch",
        "FedAvg, seed 3",
        "FedAvg #0123",
        "train",
    )
    assert run["tags"] == ["fedavg", "digits", "mine"]
    info = run_info(tmp_path)
    assert {k: v for k, v in run["config"]["update"].items() if k != "_wandb"} == info.columns | {"config": info.config}
    metrics = only(records, "metric")
    assert {metric.get("name", metric.get("glob_name")) for metric in metrics} == {"round", "*"}
    assert [metric["step_metric"] for metric in metrics if metric.get("glob_name") == "*"] == ["round"]
    summary: dict[str, Any] = {}
    for update in only(records, "summary"):
        summary |= update.get("update", {})
    assert {k: summary[k] for k in SUMMARY if k != "train/loss"} == {
        k: v for k, v in SUMMARY.items() if k != "train/loss"
    }
    assert summary["train/loss"] == 0.5  # the last that was a number
    (artifact,) = [one for one in only(records, "artifact") if one["type"] == "model"]
    assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["model.safetensors"]
    assert [end["exit_code"] for end in only(records, "exit")] == [0]


def test_wandb_marks_a_failed_run(tmp_path):
    track(WandbTracker(mode="offline"), tmp_path / "run", status="failed")
    records = inspect(wandb_runs(tmp_path / "run")[0])
    assert [end["exit_code"] for end in only(records, "exit")] == [1]
    assert not only(records, "artifact")  # log_model is off by default


def test_two_runs_in_one_process_are_two_wandb_runs(tmp_path):
    for name in ("first", "second"):
        track(WandbTracker(mode="offline", group=name), tmp_path / name)
        (path,) = wandb_runs(tmp_path / name)
        records = inspect(path)
        assert only(records, "run")[0]["run_group"] == name
        assert len(only(records, "history")) == 3
        assert (tmp_path / name / "wandb" / "cache").is_dir()


KEY = "0123456789abcdef" * 2 + "01234567"  # forty characters, as W&B's keys have; no server ever saw it
NETRC = f"machine api.wandb.ai\n  login user\n  password {KEY}\n"


@pytest.mark.parametrize(
    ("environment", "netrc", "modes"),
    [
        pytest.param({}, "", ["offline"], id="nothing"),
        pytest.param({"WANDB_API_KEY": KEY}, "", ["online", "offline"], id="key"),
        pytest.param({}, NETRC, ["online", "offline"], id="netrc"),
        pytest.param({}, NETRC.replace("api.wandb.ai", "example.org"), ["offline"], id="netrc of another host"),
        pytest.param({"WANDB_API_KEY": "short"}, "", ["offline"], id="no key at all"),
        pytest.param({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, NETRC, ["offline"], id="offline despite a key"),
        pytest.param({"WANDB_MODE": "online"}, "", ["online", "offline"], id="online without a key"),
        pytest.param({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "", [], id="disabled"),
    ],
)
def test_auto_mode(environment, netrc, modes, tmp_path, monkeypatch, capfd):
    import wandb

    asked = []

    def init(**arguments):
        asked.append(arguments["mode"])
        raise ConnectionError("no network in this test")

    wandb.teardown()  # W&B keeps the credentials that it found until then
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path(os.environ["NETRC"]).write_text(netrc)
    monkeypatch.setattr(wandb, "init", init)
    WandbTracker(mode="auto").start(run_info(tmp_path / "run"))
    wandb.teardown()
    assert asked == modes  # each refused in this test: what is tried after online is offline
    assert len(capfd.readouterr().err.splitlines()) == len(modes[:1])


def test_the_mode_in_the_config_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track(WandbTracker(mode="offline"), tmp_path / "run")
    assert len(wandb_runs(tmp_path / "run")) == 1


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_a_run_is_recorded_offline_and_nobody_is_asked(mode, tmp_path):
    """In a process of its own, with no standard input, an empty home, and W&B's usual places to look into after."""
    home, run = tmp_path / "home", tmp_path / "run"
    script = (
        "import logging, sys\nfrom pathlib import Path\n"
        "logging.basicConfig()\nsys.path.insert(0, sys.argv[1])\n"
        "from test_tracking import track\nfrom fedresearch.tracking.wandb_tracker import WandbTracker\n"
        "track(WandbTracker(mode=sys.argv[2], log_model=True), Path(sys.argv[3]))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), mode, str(run)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "WANDB_DIR": str(home),
            "MPLCONFIGDIR": FONTS,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.monotonic() - started < 30  # most of it imports; W&B's own wait for a server would be 180 s
    assert done.returncode == 0, done.stderr
    (path,) = wandb_runs(run)
    reason = {
        "auto": "no API key is configured, so the run is recorded offline",
        "online": "going online failed (UsageError: No API key configured. Use `wandb login` to log in.), "
        "so the run is recorded offline",
    }[mode]
    assert done.stdout == ""
    assert done.stderr == f"W&B: {reason}; to upload it: wandb sync {path}\n"
    assert not list(home.rglob("*"))
    assert len(only(inspect(path), "history")) == 3


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_unreachable_server_only_delays_the_start(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    track(WandbTracker(mode="auto"), tmp_path / "run")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B: going online failed (")
    runs = [path for path in wandb_runs(tmp_path / "run") if str(path) in line]
    assert len(runs) == 1
    assert len(only(inspect(runs[0]), "history")) == 3


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("init", r"W&B: starting failed \(OSError: init broke\); the run continues without W&B"),
        (
            "log",
            r"W&B: logging a round failed \(OSError: log broke\); the run continues without W&B; "
            r"to upload what it has so far: wandb sync \S+offline-run-\S+",
        ),
        (
            "log_model",
            r"W&B: storing the model failed \(OSError: log_model broke\); the run continues without W&B; "
            r"to upload what it has so far: wandb sync \S+offline-run-\S+",
        ),
        (
            "finish",
            r"W&B: finishing failed \(OSError: finish broke\); the run continues without W&B; "
            r"to upload what it has so far: wandb sync \S+offline-run-\S+",
        ),
    ],
)
def test_a_run_survives_what_breaks_in_wandb(broken, line, tmp_path, monkeypatch, capfd):
    import wandb

    def breaks(*arguments, **options):
        raise OSError(f"{broken}\nbroke")

    with monkeypatch.context() as patch:
        patch.setattr(wandb if broken == "init" else wandb.Run, broken, breaks)
        track(WandbTracker(mode="offline", log_model=True), tmp_path / "run")
    lines = [x for x in capfd.readouterr().err.splitlines() if "to upload it" not in x]
    assert len(lines) == 1
    assert re.fullmatch(line, lines[0])
    # The next run in this process is not affected.
    track(WandbTracker(mode="offline"), tmp_path / "next")
    assert len(only(inspect(wandb_runs(tmp_path / "next")[0]), "history")) == 3


def test_wandb_options_are_the_arguments():
    options = yaml.safe_load((Path(__file__).parents[1] / "conf" / "tracker" / "wandb.yaml").read_text())
    assert options.pop("_target_") == f"{WandbTracker.__module__}.WandbTracker"
    assert options == {
        "mode": "auto",
        "project": "${oc.env:WANDB_PROJECT,fedresearch}",
        "entity": "${oc.env:WANDB_ENTITY,null}",
        "tags": "${oc.env:WANDB_TAGS,null}",
        "group": "${oc.env:WANDB_RUN_GROUP,null}",
        "job_type": "train",
        "log_model": False,
        "log_clients": False,
    }
    WandbTracker(**options)


def test_wandb_is_given_what_it_takes(tmp_path):
    """Numbers as text, a tag once, and names of options within W&B's limits: it would refuse the whole run."""
    long = "s" * 200
    info = replace(run_info(tmp_path / "run"), name=long, tags=[long, "digits"])
    tracker = WandbTracker(mode="offline", tags=[2026, "digits"], group=7)
    tracker.start(info)
    tracker.finish("finished", {})
    (run,) = only(inspect(*wandb_runs(tmp_path / "run")), "run")
    assert run["display_name"] == "s" * 125 + "..."
    assert run["tags"] == ["s" * 61 + "...", "digits", "2026"]
    assert run["run_group"] == "7"


@pytest.mark.parametrize(("tags", "taken"), [("iclr", ["iclr"]), ("a,b", ["a", "b"]), ("", []), (None, [])])
def test_tags_in_one_text_have_commas_between_them(tags, taken):
    assert [*WandbTracker(tags=tags)._tags] == taken


def test_the_environment_names_what_was_not_typed(monkeypatch):
    known = {"PROJECT": "fl", "ENTITY": "lab", "RUN_GROUP": "g", "TAGS": "iclr,v2", "NAME": "first"}
    for name, value in known.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config, *_ = compose(CONF, [])
    assert config.name == "first"
    options = {key: config.tracker[key] for key in ("project", "entity", "group", "tags")}
    assert options == {"project": "fl", "entity": "lab", "group": "g", "tags": "iclr,v2"}
    config, *_ = compose(CONF, ["tracker.project=mine", "tracker.tags=[x]", "name=second"])
    assert (config.tracker["project"], config.tracker["tags"], config.name) == ("mine", ["x"], "second")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "tracker.project=fl/a",
            r"tracker.project must be a text of 1 to 128 characters without / \\ # \? % :, got fl/a",
        ),
        ("tracker.project=''", "tracker.project must be .*, got ''; try tracker.project=fedresearch"),
        ("tracker.entity=a/b", "tracker.entity must be .*, got a/b; try tracker.entity=my-team"),
        (
            f"tracker.tags=[{'s' * 65}]",
            r"tracker.tags must be a list of tags of 1 to 64 .*; try 'tracker.tags=\[paper,v2\]'",
        ),
        (f"tracker.tags={'s' * 65}", "tracker.tags must be"),
        ("tracker.tags=['']", "tracker.tags must be"),
        ("tracker.tags=[[a]]", "tracker.tags must be"),
        (f"tracker.group={'s' * 129}", "tracker.group must be"),
        ("tracker.group=[a]", r'tracker.group must be a text of 1 to 128 characters, or null, got \["a"\]'),
        ("tracker.job_type={a: 1}", "tracker.job_type must be"),
        ("tracker.log_model=maybe", "tracker.log_model must be true or false, got maybe"),
        (f"name={'n' * 129}", "name must be a text of 1 to 128 characters, or null"),
        ('name="a\tb"', "name must be"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(compose, override, line):
    with pytest.raises(InputError, match=line):
        compose(override)


@pytest.mark.parametrize("override", ["tracker.tags=[2026,1.5,iclr]", "tracker.group=7", "tracker.entity=''", "name=7"])
def test_numbers_are_names_too(compose, override):
    compose(override)


# --- TensorBoard


def test_tensorboard_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    track(TensorBoardTracker(), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = {"train/loss", "eval/loss", "eval/accuracy", "comm/bytes_up", "clients/sampled"}
    assert set(events.Tags()["scalars"]) == names | {"time/round_s", "time/total_s", "best/round"}
    for name in names - {"train/loss"}:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(row["round"], row[name]) for row in ROWS if row[name] is not None]
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hyperparameters = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert hyperparameters["seed"].number_value == 3
    assert hyperparameters["lr"].number_value == 0.1
    assert hyperparameters["strategy"].string_value == "fedavg"
    for name in FIGURES:
        (image,) = events.Images(f"final/{name}")
        assert (image.step, image.encoded_image_string[:4]) == (3, b"\x89PNG")
    (config,) = events.Tensors("config/text_summary")
    assert b"    optimizer.lr: 0.1\n" in config.tensor_proto.string_val[0]
    assert [event.value for event in events.Scalars("best/round")] == [1]
    *finite, diverged = [event.value for event in events.Scalars("train/loss")]
    assert finite == [0.75, 0.5]
    assert math.isnan(diverged)


def test_tensorboard_missing(monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(InputError) as raised:
        TensorBoardTracker()
    assert str(raised.value) == (
        "tracker=tensorboard needs the package tensorboard, which is not installed; "
        'try pip install "fedresearch[tensorboard]"'
    )


# --- MLflow and Trackio, where they are installed


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of SQLAlchemy and pydantic
def test_mlflow_read_back(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    track(MlflowTracker(), tmp_path / "run")
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("fedresearch").experiment_id])
    assert (run.info.run_name, run.info.status) == ("FedAvg, seed 3", "FINISHED")
    assert (run.data.params["lr"], run.data.tags["group"], run.data.metrics["best/round"]) == ("0.1", "FedAvg #0123", 1)
    read = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "eval/accuracy")]
    assert read == [(1, 0.25), (3, 0.875)]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", *(f"{name}.png" for name in FIGURES)}


def test_trackio_read_back(tmp_path):
    """In a process of its own: Trackio reads its folder's name when it is imported."""
    pytest.importorskip("trackio")
    script = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "from test_tracking import track\nfrom fedresearch.tracking.trackio_tracker import TrackioTracker\n"
        "track(TrackioTracker(), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "run")]
    subprocess.run(command, check=True, env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}, timeout=60)
    with sqlite3.connect(tmp_path / "trackio" / "fedresearch.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [step for _, step, _ in rows] == [1, 2, 3, 3]
    assert {name.partition(" #")[0] for name, _, _ in rows} == {"FedAvg, seed 3"}
    assert json.loads(rows[0][2])["eval/accuracy"] == 0.25
    assert {f"final/{name}" for name in FIGURES} | {"best/round"} <= json.loads(rows[3][2]).keys()


# --- the console


def shown(tmp_path: Path, *, rows: list[dict[str, Any]], summary: dict[str, Any], terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(Terminal(file=file, force_terminal=terminal, width=80, _environ={"TERM": "xterm"}))
    console.start(run_info(tmp_path / "run"))
    for row in rows:
        console.log(row)
        console._progress.refresh()  # which its thread does twice a second
    console.finish("finished" if len(rows) == 3 else "failed", summary)
    return file.getvalue()


def test_plain_lines(tmp_path):
    # 60 clients in half a second are 120 a second; the rounds left take as long as those before took on average.
    assert shown(tmp_path, rows=ROWS, summary=SUMMARY).splitlines() == [
        "round 1/3  train/loss 0.7500    eval/loss 0.5000    eval/accuracy 0.2500  120 clients/s  1.0 s left",
        "round 2/3  train/loss 0.5000    120 clients/s  0.5 s left",
        "round 3/3  train/loss nan       eval/loss 0.1250    eval/accuracy 0.8750  120 clients/s  0.0 s left",
        "finished after 3 of 3 rounds",
        "  eval/loss               0.1250",
        "  eval/accuracy           0.8750",
        "  clients/accuracy_mean   0.7500  of 9 clients",
        "  clients/accuracy_worst  0.5000  of 9 clients",
        "  comm/bytes_up_total     1.5 MB",
        "  comm/bytes_down_total   3.0 GB",
        "  time/total_s            3 min 20 s",
        str(tmp_path / "run"),
    ]


def test_a_job_of_a_sweep_has_its_name_in_its_lines_and_nothing_on_a_terminal(tmp_path, monkeypatch):
    def job_shown(file):
        monkeypatch.setattr("sys.stdout", file)
        console = Console(job="seed=1 strategy=fedavg")
        console.start(run_info(tmp_path / "run"))
        console.log(ROWS[0])
        console.finish("failed", {"eval/loss": 0.125})
        return file.getvalue()

    *lines, directory = job_shown(io.StringIO()).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("seed=1 strategy=fedavg  ") for line in lines)
    assert directory == str(tmp_path / "run")

    class Tty(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert job_shown(Tty()) == ""


def test_numbers_stand_below_each_other_however_long_the_names_are(tmp_path):
    file = io.StringIO()
    console = Console(Terminal(file=file))
    console.start(replace(run_info(tmp_path / "run"), metrics=["balanced_accuracy"]))
    summary = {"eval/loss": 0.125, "clients/balanced_accuracy_worst": 0.5, "personal/balanced_accuracy_worst": 0.25}
    console.finish("failed", summary)
    assert file.getvalue().splitlines()[1:-1] == [
        "  personal/balanced_accuracy_worst  0.2500",
        "  eval/loss                         0.1250",
        "  clients/balanced_accuracy_worst   0.5000",
    ]


def test_the_plain_line_of_round_0_has_no_speed(tmp_path):
    row = {"round": 0, "eval/loss": 2.5, "eval/accuracy": 0.125, "time/round_s": 0.1, "time/total_s": 0.1}
    assert shown(tmp_path, rows=[row], summary={}).splitlines()[0] == (
        "round 0/3  eval/loss 2.500     eval/accuracy 0.1250"
    )


def test_plain_lines_of_a_regression_that_failed(tmp_path):
    row = {"round": 1, "train/loss": 12.5, "eval/loss": 1e-9, "clients/sampled": 3, "time/round_s": 2.0}
    lines = shown(tmp_path, rows=[row | {"time/total_s": 4000.0}], summary={}).splitlines()
    assert lines == [
        "round 1/3  train/loss 12.50     eval/loss 1.000e-09  1.5 clients/s  2 h 13 min left",
        "failed after 1 of 3 rounds",
        str(tmp_path / "run"),
    ]


def test_the_bar_on_a_terminal(tmp_path):
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(tmp_path, rows=ROWS, summary=SUMMARY, terminal=True))
    bars = [line for line in re.split(r"[\r\n]+", output) if "━" in line]
    assert all(len(line) <= 80 for line in bars)
    assert re.match(r"\S round 0/3 ━", bars[0])
    # The second round does not evaluate: the last accuracy stays.
    for position, loss, accuracy, left in [("1/3", "0.5000", "0.2500", "1.0"), ("2/3", "0.5000", "0.2500", "0.5")]:
        figures = rf"[\S ] round {position} ━.*loss {loss}  accuracy {accuracy}  120 clients/s  {left} s left\s*"
        shown_so = [line for line in bars if position in line]
        assert shown_so
        assert all(re.fullmatch(figures, line) for line in shown_so)
    assert output.splitlines()[-1] == str(tmp_path / "run")
