"""Flower's deployment engine on loopback: a real SuperLink and real SuperNodes, in separate processes."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from flwr.app import Context, RecordDict

from fedresearch.errors import InputError
from fedresearch.experiment.builder import Builder
from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.run import run_experiment
from fedresearch.masking import without_secrets
from fedresearch.superlink import apps as superlink_apps
from fedresearch.superlink.connection import SuperLink
from fedresearch.superlink.submit import submit
from tests import warm
from tests.directories import killed, outcome
from tests.processes import descendants, listens, living

ROOT = Path(__file__).parents[1]
SHORT = ["tracker=none", "federation.num_supernodes=2", "local.epochs=1", "model=logistic"]
SHORT += ["federation.evaluate_initial=false"]
NO_EVALUATION = ["federation.fraction_evaluate=0", "validation.fraction=0"]
# One of two clients is away in round 1; the other one has less than a batch, of which a run warns.
AWAY = ["availability=bernoulli", "availability.probability=0.9", "local.batch_size=2000"]

FAULTY = """
from fedresearch.strategies.scaffold import ScaffoldUpdate

class Faulty(ScaffoldUpdate):
    def begin(self, start):
        if (start.server_round, start.partition_id) == (3, 1):
            raise ArithmeticError("not today")
        return super().begin(start)
"""


def environment(cwd):
    clean = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WANDB_MODE")}
    return {**clean, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", "TMPDIR": str(cwd)}


def start(cwd, *words):
    """Start the command line in a folder."""
    return warm.Command("-m", "fedresearch.main", *words, cwd=cwd, env=environment(cwd), preload=warm.LIGHT)


def fedresearch(cwd, *overrides):
    """Run the command line in a folder, on a SuperLink; return its exit code and what it printed."""
    with start(cwd, *SHORT, "hardware=superlink", *overrides) as process:
        out, err = process.communicate()
        return process.returncode, out, err


def numbers(directory):
    """Return a run's rows without their times."""
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def record(directory):
    return json.loads((directory / "run.json").read_text())


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A SuperLink with TLS and two authenticated SuperNodes, as an object, and its FLWR_HOME."""
    folder = tmp_path_factory.mktemp("superlink")
    (folder / "faulty.py").write_text(FAULTY)  # for the SuperNodes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
        patch.setattr("tempfile.tempdir", str(folder))
        for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "not for everybody")
        with SuperLink(2, address=None, root_certificates=None, secure=True, timeout_s=60) as superlink:
            (home,) = folder.glob("fedresearch-*")
            patch.setenv("FLWR_HOME", str(home))  # as the user who has logged in
            yield superlink, home
    assert not home.exists()


@pytest.fixture(scope="module")
def superlink(own):
    """The address of a SuperLink, and its CA certificate."""
    _, home = own
    pattern = 'address = "(.*)"\nroot-certificates = "(.*)"'
    return re.findall(pattern, (home / "config.toml").read_text())[0]


@pytest.fixture
def there(superlink):
    """The overrides that name the SuperLink."""
    address, certificate = superlink
    return [f"hardware.address={address}", f"hardware.root_certificates={certificate}", "hydra.run.dir=d"]


@pytest.mark.slow
def test_scaffold_resumes_over_tls_to_the_bits_of_cpu_where_a_client_fails(there, tmp_path, compose, monkeypatch):
    """Each client keeps a variate and a channel's error, which are sent to the SuperNodes, used there, and fetched."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*SHORT, "strategy=scaffold", "strategy.client._target_=faulty.Faulty", *NO_EVALUATION]
    overrides += ["channel=[topk,noise]", "federation.fraction_train=1", "federation.max_failures=1"]
    overrides += ["checkpoint.every=1", "checkpoint.keep=9", "federation.num_rounds=3"]

    whole = tmp_path / "whole"
    run_experiment(RunRequest(*compose(*overrides), whole, overrides, [], []))
    resumed = killed(whole, tmp_path / "d", checkpoint=2)
    (resumed / "failures.jsonl").unlink()
    with start(tmp_path, "resume=d", "hardware=superlink", *there[:2]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "\nresuming after round 2\n" in out
    assert out.splitlines()[-1] == str(resumed)
    failure = json.loads((resumed / "failures.jsonl").read_text())
    assert (failure["round"], failure["partition_id"]) == (3, 1)
    assert "ArithmeticError: not today" in failure["error"]
    assert outcome(resumed) == outcome(whole)
    assert record(resumed)["status"] == "finished"
    assert record(resumed)["digest"] == record(whole)["digest"]
    assert "hardware=superlink" in record(resumed)["resumed"][0]["command"]


@pytest.mark.slow
def test_without_a_token_no_process_can_submit_or_receive_a_task(own, superlink):
    address, certificate = superlink
    trusted = ssl.create_default_context(cafile=certificate)
    ports = own[0]._own._node_ports
    for port in ports:
        own[0]._own._wait_for(port)
    doors = [HTTPSConnection(address, context=trusted), *(HTTPConnection("127.0.0.1", port) for port in ports)]
    asked = [(door, "runtime/acquire-task") for door in doors]
    asked += [(doors[0], f"control/{name}") for name in ("start-run", "list-runs", "register-node")]
    for door, method in asked:
        for headers in ({}, {"Authorization": "Bearer " + 64 * "0"}):
            with closing(door):
                door.request("POST", f"/v1/{method}", headers={"Content-Type": "application/protobuf", **headers})
                assert door.getresponse().status in (401, 403), method


@pytest.mark.slow
def test_only_this_user_can_read_keys_and_tokens(own, superlink):
    home = own[1]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    secret = [*home.glob("*.key"), *home.glob("*token*"), home / "task-secret", home / "credentials.yaml"]
    assert len(secret) >= 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
    tokens = {(home / "token").read_text(), (home / "task-secret").read_text()}
    for pid in descendants(os.getpid()):
        listed = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
        assert not any(token in listed for token in tokens)
        assert " --token " not in listed, "which any user could read, and submit with it"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="environments are read off /proc")
def test_only_the_server_has_the_keys_of_its_tracker(own):
    for name, process in own[0]._own._processes.items():
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        secret = {entry.partition(b"=")[0] for entry in environment if entry.endswith(b"=not for everybody")}
        assert secret == ({b"WANDB_API_KEY", b"HF_TOKEN"} if name == "flower-superexec" else set())


def test_what_is_a_secret():
    secret = ["AWS_ACCESS_KEY_ID", "GITHUB_TOKEN", "PGPASSWORD", "SSH_AUTH_SOCK", "API_KEY", "azure_client_secret"]
    secret += [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "DB_PASS",
        "MY_PWD",
        "OLD_APIKEY_2",
        "MY_KEY",
    ]
    plain = [
        "PATH",
        "PWD",
        "OLDPWD",
        "WANDB_MODE",
        "HF_HUB_OFFLINE",
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "FEDRESEARCH_CACHE",
    ]
    environment = dict.fromkeys([*secret, *plain], "x")
    assert without_secrets(environment) == dict.fromkeys(plain, "x")
    assert without_secrets(environment, ["HF_TOKEN"]) == dict.fromkeys([*plain, "HF_TOKEN"], "x")


def test_more_supernodes_than_memory_allows_are_rejected():
    """Memory for 100,000, of a quarter of a gigabyte each, is 25 TB."""
    with pytest.raises(InputError, match=r"0\.25 GB together: 100000 need 25000 GB, this machine has \d+; try fed"):
        SuperLink(100_000, address=None, root_certificates=None, secure=False, timeout_s=60)
    SuperLink(100_000, address="127.0.0.1:8000", root_certificates=None, secure=False, timeout_s=60)  # starts none


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_no_folder(tmp_path):
    program = (
        "import time; from fedresearch.superlink.connection import SuperLink\n"
        "with SuperLink(1, address=None, root_certificates=None, secure=False, timeout_s=60):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        started = descendants(process.pid)
        assert len(started) == 5  # the SuperLink, a SuperNode, a SuperExec of each, and the process that ends them
        assert [*tmp_path.glob("fedresearch-*")]
        process.kill()
    deadline = time.monotonic() + 30
    while started & living().keys() or [*tmp_path.iterdir()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_servers_log_has_the_same_error_lines_as_elsewhere_which_the_command_reports(
    compose, tmp_path, monkeypatch, capsys, run
):
    refused = ["dataset=mnist", "dataset.root=nowhere", "hardware=superlink"]
    request = RunRequest(*compose(*SHORT, *refused), tmp_path / "d", refused, ["fedresearch"], [])
    nodes = SimpleNamespace(query_new_nodes=lambda: None, num_supernodes=None, timeout_s=None)
    monkeypatch.setattr(superlink_apps, "NodeGrid", lambda grid: nodes)
    monkeypatch.setattr(superlink_apps, "_one_thread", lambda: None)
    context = Context(1, 0, {}, RecordDict(), {"experiment": request.dumps()})
    with pytest.raises(InputError) as there:
        superlink_apps.server_app(None, context)
    with pytest.raises(InputError) as here:
        run(*SHORT, *refused[:2])
    assert there.value.args == here.value.args
    logged = capsys.readouterr().err
    assert logged == f"error: {here.value}\n"
    assert {path.name for path in (tmp_path / "d").iterdir()} <= {".lock"}

    superlink = MagicMock(**{"status.return_value": "finished:failed", "troubles.return_value": []})
    superlink.log.return_value = ["round 1/3", *logged.splitlines(), "Traceback (most recent call last):"]
    monkeypatch.setattr(Builder, "build", lambda *_, **__: superlink)
    with pytest.raises(InputError) as reported:
        submit(replace(request, may_resume=True))
    assert reported.value.args == here.value.args
    assert capsys.readouterr().out.splitlines()[-1] == "round 1/3"


@pytest.mark.slow
def test_flwr_run_runs_the_default_experiment_with_overrides(superlink, tmp_path, run):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("fedresearch", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    connection = '[superlink]\ndefault = "a"\n[superlink.a]\naddress = "{}"\nroot-certificates = "{}"\n'
    (tmp_path / "home" / "config.toml").write_text(connection.format(*superlink))
    shutil.copy(Path(os.environ["FLWR_HOME"], "credentials.yaml"), tmp_path / "home")
    overrides = ["tracker=none", "federation.num_rounds=1", "strategy=fedprox", "local.epochs=1", *NO_EVALUATION]
    overrides += ["federation.fraction_train=0.5"]
    words = " ".join([*overrides, f"hydra.run.dir={tmp_path}/d"])
    done = subprocess.run(
        [
            Path(sys.executable).parent / "flwr",
            "run",
            ".",
            "--stream",
            "--run-config",
            f'overrides="{" ".join([words, *AWAY])}"',
        ],
        cwd=tmp_path,
        env={**environment(tmp_path), "FLWR_HOME": str(tmp_path / "home"), "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    assert "finished after 1 of 1 rounds" in done.stdout, done.stdout + done.stderr
    assert "\nwarning: partitions 0, 1 hold less than one batch of 2000 training samples\n" in done.stdout
    expected = run(*overrides, *AWAY, "federation.num_supernodes=2", "federation.evaluate_initial=true").numbers()
    assert numbers(tmp_path / "d") == expected
    assert [row.get("clients/available") for row in expected] == [None, 1]


@pytest.mark.slow
def test_an_interrupt_leaves_the_record_and_nothing_else(tmp_path):
    overrides = ["federation.num_supernodes=1", *NO_EVALUATION, "federation.evaluate_initial=true"]
    with start(tmp_path, *SHORT, "hardware=superlink", *overrides, "hydra.run.dir=d") as process:
        deadline = time.monotonic() + 300
        while not ((tmp_path / "d" / "metrics.jsonl").exists() and numbers(tmp_path / "d")):
            assert process.poll() is None, process.printed()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # The initial model is evaluated, and a client begins to train.
        (home,) = tmp_path.glob("fedresearch-*")
        (port,) = re.findall(r"address = .*:(\d+)", (home / "config.toml").read_text())
        started = descendants(process.pid)
        assert len(started) >= 6  # SuperLink, ServerApp, a SuperNode, a SuperExec of each, flwr log
        assert {address for pid in started for _, address in listens(pid)} == {"0100007F"}  # 127.0.0.1
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 130
        assert process.printed()[1].splitlines()[-1] == "interrupted"
    assert not started & living().keys()
    assert not home.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0
    assert record(tmp_path / "d")["status"] == "interrupted"
    assert [row["round"] for row in numbers(tmp_path / "d")] == [0]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["federation.num_supernodes=null", "partitioner=linear", "partitioner.num_partitions=3"],
            "the number of SuperNodes",
        ),
        (["hardware.address=host:1", "hardware.secure=true"], "try hardware.root_certificates=ca.pem"),
        (["hardware.root_certificates=ca.pem"], "try hardware.secure=true"),
        (
            ["hardware.address=host"],
            "hardware.address must be HOST:PORT or, of a Ray cluster of this machine, auto; or null, got host; try",
        ),
        (["hardware.timeout_s=0"], "hardware.timeout_s must be > 0, got 0; try hardware.timeout_s=300"),
    ],
)
def test_options_that_cannot_work_are_rejected(compose, overrides, line):
    with pytest.raises(InputError, match=re.escape(line)):
        compose("hardware=superlink", *overrides)


def test_a_missing_superlink_is_reported(tmp_path):
    code, _, err = fedresearch(tmp_path, "hardware.address=127.0.0.1:9", "hydra.run.dir=d")
    assert code == 1
    assert err.startswith("error: flwr run: ")
    assert "see hardware.address" in err
    assert len(err.splitlines()) == 1
