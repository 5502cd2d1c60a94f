"""The differences of two runs, and a run reproduced from its record."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedresearch.config import differences
from fedresearch.dotted_keys import ABSENT, differing
from fedresearch.errors import InputError
from fedresearch.runs.comparison import compare_rows, format_value, record_differences
from fedresearch.runs.record import dump_record, read_record
from fedresearch.study.compare import compare
from tests import warm
from tests.conftest import LONG
from tests.records import make

ROOT = Path(__file__).parents[1]
SHORT = ["model=logistic", "federation.num_rounds=3", "federation.num_supernodes=4", "local.epochs=1", "tracker=none"]


def start(cwd, module, *arguments, rerun="warm"):
    environment = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WANDB_MODE")}
    env = {**environment, "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    verb = [] if module == "main" else [module]
    if module == "reproduce" and rerun == "warm":
        env["WARM_RERUN"] = "1"
    return warm.Command("-m", "fedresearch.main", *verb, *arguments, cwd=cwd, env=env)


def command(cwd, module, *arguments, **options):
    with start(cwd, module, *arguments, **options) as process:
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def run(cwd, name, *overrides):
    done = command(cwd, "main", *overrides, f"hydra.run.dir={name}")
    assert done.returncode == 0, done.stderr
    return cwd / name


def edit_record(directory, **fields):
    """Rewrite a record with changed fields and a valid hash."""
    (directory / "run.json").write_text(dump_record({**read_record(directory), **fields}))


def edit_row(directory, server_round, **values):
    path = directory / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[server_round] |= values  # the first is of round 0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three rounds; tests must not change it."""
    return run(tmp_path_factory.mktemp("finished"), "one", *SHORT)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, which tests may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


# Differences by hand.


def test_leaves_differ_by_their_json():
    a = {"x": {"same": 1, "kind": 1, "gone": {"deep": 2}}, "nan": float("nan"), "list": [1, {"k": 1}], "empty": {}}
    b = {"x": {"same": 1, "kind": 1.0, "new": None}, "nan": float("nan"), "list": [1, {"k": 2}]}
    assert [*differing(a, b)] == [
        ("x.kind", 1, 1.0),
        ("x.gone.deep", 2, ABSENT),
        ("x.new", ABSENT, None),
        ("list", [1, {"k": 1}], [1, {"k": 2}]),
        ("empty", {}, ABSENT),
    ]
    assert [*differing(True, 1, "key")] == [("key", True, 1)]
    assert [*differing({"k": "not set"}, {})] == [("k", "not set", ABSENT)]


@pytest.mark.parametrize(
    ("overrides", "numerical", "others"),
    [
        (["name=x", "cache_dir=/c"], set(), {"name", "cache_dir"}),
        (["seed=1"], {"seed"}, set()),
        (["federation.num_rounds=7"], {"federation.num_rounds"}, set()),
        (
            ["hardware=workers"],
            set(),
            {f"hardware.{key}" for key in ("_target_", "workers", "threads", "declares.runs")},
        ),
        (
            ["hardware=workers", "hardware.threads=2"],
            {"hardware.threads"},
            {"hardware._target_", "hardware.workers", "hardware.declares.runs"},
        ),
        (["channel=clip"], {"channel", "channel.clip._target_", "channel.clip.max_norm"}, set()),
        (["hardware=gpu"], {"hardware.device"}, {"hardware._target_"}),
        (
            ["hardware=ray", "hardware.num_gpus=0.5"],
            {"hardware.num_gpus"},
            {f"hardware.{key}" for key in ("_target_", "address", "num_cpus", "declares.runs")},
        ),
        (
            ["hardware=batched"],
            {"hardware.chunk"},
            {f"hardware.{key}" for key in ("_target_", "cache_dir", "compile", "device")},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_difference_is_numerical_if_it_changes_the_digest(compose, overrides, numerical, others):
    from dataclasses import asdict

    from fedresearch.config import digest

    (base, _), (other, _) = compose("tracker=none"), compose("tracker=none", *overrides)
    found = differences(asdict(base), asdict(other))
    assert {key for key, _, _, counts in found if counts} == numerical
    assert {key for key, _, _, counts in found if not counts} == others
    assert (digest(base) != digest(other)) == bool(numerical)
    back = differences(asdict(other), asdict(base))
    assert sorted([(key, b, a, counts) for key, a, b, counts in back], key=repr) == sorted(map(tuple, found), key=repr)


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        (["dataset.root='/my data/it\\'s,=here\\\\'"], []),
        (["dataset.root=../data"], []),
        (["model.widths=[3,4]", "optimizer.lr=1e-05"], ["seed=3"]),
        (["name='null'", "local.steps=3", "local.epochs=null"], []),
        (["+optimizer.extra=[a b,null]"], []),
        ([], ["+optimizer.extra=0.5"]),
        (["channel=[clip]", "channel.clip.max_norm=3"], []),
        ([], ["channel=[clip]"]),
    ],
    ids=str,
)
def test_the_override_for_a_recorded_value_restores_it(compose, recorded, now):
    from dataclasses import asdict

    base = ["tracker=none", "dataset=mnist", "model=mlp"]
    wanted = asdict(compose(*base, *recorded)[0])
    found = differences(wanted, asdict(compose(*base, *now)[0]))
    assert found
    typed = [word for difference in found for word in shlex.split(difference.override)]
    assert not differences(wanted, asdict(compose(*base, *now, *typed)[0]))


def test_an_options_name_stands_for_the_path_of_its_class(tmp_path):
    rows = [{"train/loss": 1.0}]
    make(tmp_path / "a", choices={"hardware": "cpu", "optimizer": "sgd"}, rows=rows)
    optimizer = {"_target_": "mine", "lr": 0.1, "schedule": {"_target_": "constant"}}
    hardware = {"_target_": "workers", "workers": 2}
    choices = {"hardware": "workers", "optimizer": "sgd", "experiment": "a"}
    make(tmp_path / "b", choices=choices, rows=rows, hardware=hardware, optimizer=optimizer)
    lines, _ = compare(tmp_path / "a", tmp_path / "b")
    assert "  hardware: cpu | workers" in lines
    assert not any(line.startswith("  hardware._target_") for line in lines)
    assert "  optimizer._target_: not set | mine" in lines  # a different option of the same name


def test_rows_are_compared_until_one_differs():
    a = [{"round": n, "train/loss": 1 / n, "model/sha256": "ab" * 32, "time/round_s": 1.0} for n in (1, 2, 3)]
    b = [row | {"time/round_s": 2.0} for row in a]
    same = compare_rows(a, b)
    assert same.identical
    assert same.lines() == ["identical through round 3"]
    b[1] |= {"train/loss": 0.5 + 2**-53, "eval/loss": None, "model/sha256": "cd" * 32}
    other = compare_rows(a, b)
    assert not other.identical
    assert other.lines() == [
        "numbers differ from round 2 on, identical through round 1",
        "  train/loss: 0.5 | 0.5000000000000001",
        "  model/sha256: abababababab | cdcdcdcdcdcd",
        "  eval/loss: not set | null",
    ]


def test_rows_are_compared_by_their_rounds():
    without = [{"round": n, "train/loss": 1 / n} for n in (1, 2)]
    a = [{"round": 0, "eval/loss": 2.0}, *without]
    assert compare_rows(a, a).lines() == ["identical through round 2"]
    assert compare_rows(a[:1], a[:1]).lines() == ["neither has a round, so there are no numbers to compare"]
    found = compare_rows(a, without)
    assert (found.identical, found.lines()) == (False, ["identical through round 2, but only one has a row of round 0"])
    found = compare_rows(a, [{"round": 0, "eval/loss": 3.0}, *without])
    assert found.lines() == ["numbers differ from round 0 on", "  eval/loss: 2.0 | 3.0"]


@pytest.mark.parametrize(
    ("num_rounds", "line"),
    [
        ((3, 2), "identical through round 2, of which B has no further; A has 3"),
        ((1, 3), "identical through round 1, of which A has no further; B has 3"),
        ((0, 3), "A has no round to compare, B has 3"),
        ((0, 0), "neither has a round, so there are no numbers to compare"),
    ],
)
def test_runs_of_different_lengths_are_not_identical(num_rounds, line):
    rows = [{"round": n} for n in (1, 2, 3)]
    numbers = compare_rows(*(rows[:n] for n in num_rounds))
    assert not numbers.identical
    assert numbers.lines() == [line]


def test_a_field_that_one_record_misses_is_not_a_difference():
    a = {"python": "3.11", "git": {"fedresearch": None}, "versions": {"torch": "2.6", "gone": "1"}, "choices": {}}
    b = {
        "platform": "here",
        "git": {"fedresearch": {"commit": "ab" * 20, "dirty": False}},
        "versions": {"torch": "2.7"},
        "sampling_sha256": "ab" * 32,
        "choices": {"experiment": None},
    }
    assert record_differences(a, b) == {
        "options": [("experiment", ABSENT, None)],
        "code": [("fedresearch", None, b["git"]["fedresearch"])],
        "packages": [("torch", "2.6", "2.7"), ("gone", "1", ABSENT)],
    }
    digests = ({"sampling_sha256": "a"}, {"sampling_sha256": "b"})
    assert record_differences(*digests) == {"derived": [("sampling_sha256", "a", "b")]}


def test_values_are_shown_on_one_line():
    values = [None, "null", "", "a\nb", "\ud800", "é", [1.0], "ab" * 20, ABSENT]
    assert [*map(format_value, values)] == [
        "null",
        '"null"',
        '""',
        r"a\nb",
        r"\ud800",
        "é",
        "[1.0]",
        "ab" * 6,
        "not set",
    ]


# The command.


def test_two_runs_of_one_config_differ_in_nothing(finished):
    run(finished.parent, "again", *SHORT)
    done = command(finished.parent, "compare", "one", "again")
    assert (done.returncode, done.stdout) == (0, "nothing differs: identical through round 3\n"), done.stderr


def test_another_seed_differs_from_the_first_round(finished):
    run(finished.parent, "seed", *SHORT, "seed=1")
    done = command(finished.parent, "compare", "one", "seed")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:4] == ["A  one: finished, 3 rounds", "B  seed: finished, 3 rounds", "config", "  seed: 0 | 1"]
    derived = lines[lines.index("derived") + 1 : lines.index("numbers differ from round 0 on")]
    assert {"  partition_sha256", "  initial_model_sha256"} <= {line.partition(":")[0] for line in derived}
    shas = [row["model/sha256"][:12] for row in map(first_row, (finished, finished.parent / "seed"))]
    assert f"  model/sha256: {shas[0]} | {shas[1]}" in lines
    assert not [line for line in lines if "time/" in line]


def first_row(directory):
    return json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])


def test_hardware_is_reported_to_change_no_number(finished):
    run(finished.parent, "workers", *SHORT, "hardware=workers", "hardware.workers=2")
    done = command(finished.parent, "compare", "one", "workers")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "  hardware.workers: not set | 2 (changes no number)" in lines
    assert "  hardware: auto | workers" in lines
    assert lines[-1] == "identical through round 3"


def test_one_changed_number_is_found(finished, copy):
    edit_row(copy, 2, **{"train/loss": -1.5})
    done = command(copy, "compare", finished, copy)
    assert done.returncode == 1
    loss = json.loads((finished / "metrics.jsonl").read_text().splitlines()[2])["train/loss"]
    assert done.stdout.splitlines()[2:] == [
        "numbers differ from round 2 on, identical through round 1",
        f"  train/loss: {loss} | -1.5",
    ]


def test_a_shorter_run_and_another_package_are_reported(finished, copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # torn off
    versions = read_record(copy)["versions"]
    unended = {"status": "running", "result": None, "metrics_sha256": None}
    edit_record(copy, **unended, versions={**versions, "torch": "1.0"}, processor="abacus")
    lines, identical = compare(finished, copy)
    assert not identical
    assert lines[1] == f"B  {copy}: running, 2 rounds"
    assert f"  torch: {versions['torch']} | 1.0" in lines[lines.index("packages") :]
    assert lines[-2].endswith(" | abacus")
    assert lines[-1] == "identical through round 2, of which B has no further; A has 3"


def test_what_cannot_be_compared_is_refused_in_one_line(finished, copy):
    def refusal(*paths):
        done = command(copy, "compare", *paths)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line

    assert refusal(finished, "nowhere") == "error: nowhere does not exist; the newest runs in .: ."
    text = (copy / "run.json").read_text()
    (copy / "run.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    assert refusal(finished, copy).startswith(f"error: {copy}/run.json is damaged, or was edited")
    (copy / "run.json").write_text(text)
    (copy / "metrics.jsonl").write_text("{}\n{}\n")
    assert refusal(copy, finished) == f"error: {copy}/metrics.jsonl is damaged: line 1 is not the row of round 1"


def test_comparing_imports_nothing_heavy_and_help_helps():
    heavy = "{'torch', 'flwr', 'flwr_datasets', 'datasets', 'wandb', 'numpy', 'sklearn'} & set(sys.modules)"
    code = f"import sys\nfrom fedresearch.study import compare, reproduce\nassert not {heavy}, {heavy}\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for module in ("compare", "reproduce"):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}{module}.main(['--help'])"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: fedresearch {module} ")
        assert f"  fedresearch {module} outputs/one" in done.stdout


def small_record():
    """Return the fields that compare reads, few enough that random damage hits them."""
    config = {"seed": 0, "hardware": {"threads": 1}, "model": {"widths": [1, 2]}}
    return {"status": "finished", "config": config, "choices": {"model": "mlp"}, "git": None, "versions": {"a": "1"}}


def answers(a, b):
    """Compare two directories, one of them damaged, and check that the answer is lines."""
    try:
        lines, identical = compare(a, b)
    except InputError as error:
        lines, identical = [*error.args], False
    assert lines
    assert isinstance(identical, bool)
    for line in lines:
        line.encode()
        assert "\n" not in line
    return lines, identical


@settings(max_examples=1500 if LONG else 300, deadline=None)
@given(
    name=st.sampled_from(["run.json", "metrics.jsonl"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4),
)
def test_damaged_bytes_are_answered_in_lines(tmp_path_factory, name, edits):
    whole, damaged = (tmp_path_factory.getbasetemp() / f"fuzz_{part}" for part in ("whole", "damaged"))
    for directory in (whole, damaged):
        directory.mkdir(exist_ok=True)
        (directory / "run.json").write_text(dump_record(small_record()))
        rows = [{"round": n, "train/loss": 0.5, "é": None} for n in (1, 2, 3)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = (damaged / name).read_bytes()
    for at, removed, put in edits:
        at %= len(content) + 1
        content = content[:at] + put + content[at + removed :]
    changed = content != (damaged / name).read_bytes()
    (damaged / name).write_bytes(content)
    for pair in ((whole, damaged), (damaged, whole)):
        _, identical = answers(*pair)
        assert identical or changed
    answers(damaged, damaged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=1500 if LONG else 200, deadline=None)
@given(field=st.sampled_from([*small_record(), "config.hardware"]), value=JSON, row=st.dictionaries(st.text(), JSON))
def test_any_json_in_a_record_or_row_is_answered_in_lines(tmp_path_factory, field, value, row):
    whole, strange = (tmp_path_factory.getbasetemp() / f"json_{part}" for part in ("whole", "strange"))
    for directory in (whole, strange):
        directory.mkdir(exist_ok=True)
        record = small_record()
        if directory == strange:
            section, _, key = field.rpartition(".")
            (record[section] if section else record)[key] = value
        (directory / "run.json").write_text(dump_record(record))
        line = {"round": 1} if directory == whole else {**row, "round": 1}
        (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    answers(whole, strange)
    answers(strange, whole)
    assert answers(strange, strange)[1]


# Reproducing.


@pytest.mark.slow
def test_a_run_is_reproduced_from_another_folder(finished, tmp_path):
    done = command(tmp_path, "reproduce", finished, "--out", "again")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("round 0/3")  # as it ran
    assert lines[-1] == "identical through round 3"
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["again"]


@pytest.mark.slow
def test_a_changed_number_is_not_reproduced_and_changed_packages_are_reported(copy, tmp_path):
    edit_row(copy, 3, **{"eval/loss": 0.0})
    pinned = hashlib.sha256((copy / "metrics.jsonl").read_bytes()).hexdigest()
    versions = read_record(copy)["versions"]
    edit_record(copy, versions={**versions, "torch": "1.0"}, metrics_sha256=pinned)
    done = command(tmp_path, "reproduce", copy)
    assert done.returncode == 1
    assert not done.stderr
    (out,) = (tmp_path / "outputs").glob("reproduced_*")
    loss = json.loads((out / "metrics.jsonl").read_text().splitlines()[3])["eval/loss"]
    assert done.stdout.splitlines()[-3:] == [
        f"changed since the record: packages: torch=1.0 (now {versions['torch']})",
        "numbers differ from round 3 on, identical through round 2",
        f"  eval/loss: 0.0 | {loss}",
    ]


def test_a_rerun_with_different_numbers_is_refused_before_training(finished, copy, tmp_path):
    def refusal(*arguments):
        done = command(tmp_path, "reproduce", *arguments, "--out", "again")
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert not (tmp_path / "again").exists()
        return line

    assert refusal(finished, "seed=1") == (
        f"error: {finished} ran with different values: seed=0 (now 1); leave out the override that changes it, or, "
        "for a default that has changed since, type seed=0"
    )
    config = read_record(copy)["config"]
    config["optimizer"]["lr"], config["local"]["batch_size"] = 0.25, 7
    edit_record(copy, config=config)
    line = refusal(copy)
    assert "optimizer.lr=0.25 (now " in line
    assert "local.batch_size=7 (now 10)" in line
    assert line.endswith("type local.batch_size=7 optimizer.lr=0.25")
    assert "hardware.chunk not set (now auto)" in refusal(finished, "hardware=batched")
    assert refusal(finished, "hydra.run.dir=x").startswith("error: hydra.run.dir=x is not for a rerun; remove it")
    assert refusal(finished, "+resume=x").startswith("error: +resume=x is not for a rerun; remove it")
    assert refusal(finished, "strategy=fedavgg").startswith(
        "error: strategy=fedavgg does not exist; try strategy=fedavg; "
    )
    edit_record(copy, status="interrupted")
    assert refusal(copy) == (
        f"error: {copy} is interrupted, and only finished runs can be reproduced; "
        f"finish it with: fedresearch resume={copy}"
    )


def test_an_existing_directory_is_not_written_to(finished, tmp_path):
    (tmp_path / "used").mkdir()
    done = command(tmp_path, "reproduce", "--out", "used", finished)
    assert done.returncode == 1
    assert done.stderr == "error: used exists, and nothing is overwritten; try another --out, or leave it out\n"
    assert not [*(tmp_path / "used").iterdir()]


def test_overrides_of_replaced_hardware_or_tracker_are_left_out(finished, copy, tmp_path, monkeypatch, capsys):
    from fedresearch.study import reproduce

    reruns = []

    def rerun(arguments, folder):
        reruns.append(arguments)
        shutil.copytree(finished, tmp_path / "again")

    monkeypatch.setattr(reproduce, "_run", rerun)
    mine = ["seed=0", "tracker=wandb", "tracker.mode=offline", "hardware=superlink", "++hardware.timeout_s=9"]
    config = read_record(copy)["config"] | {"hardware": {"declares": {"runs": "experiment"}}}
    edit_record(copy, config=config, overrides=[*SHORT[:4], *mine], working_directory="/no/longer/there")
    assert reproduce.reproduce(copy, ["hardware=cpu"], tmp_path / "again")
    where = ["hydra.mode=RUN", f"hydra.run.dir='{tmp_path}/again'"]
    assert reruns == [[*SHORT[:4], "seed=0", "tracker=none", "hardware=cpu", *where]]
    assert capsys.readouterr().out == "identical through round 3\n"
    shutil.rmtree(tmp_path / "again")
    assert reproduce.reproduce(copy, ["hardware.timeout_s=8"], tmp_path / "again")
    assert reruns[1][4:-2] == ["seed=0", mine[3], "tracker=none", "hardware.timeout_s=8"]
    hint = "this run uses a SuperLink; hardware=workers gives the same numbers\n"
    assert capsys.readouterr().out == f"{hint}identical through round 3\n"


@pytest.mark.slow
def test_an_interrupted_rerun_is_waited_for(finished, copy, tmp_path):
    config = read_record(copy)["config"]
    config["federation"]["num_rounds"] = 100_000
    edit_record(copy, config=config, overrides=[*SHORT, "federation.num_rounds=100000", "hardware=cpu"])
    metrics = tmp_path / "again" / "metrics.jsonl"
    with start(tmp_path, "reproduce", copy, "--out", "again") as process:
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    stopping, resumes, *interrupted = err.splitlines()
    assert stopping == "stopping after this round; once more to stop at once"
    assert resumes == f"fedresearch resume={tmp_path / 'again'}"
    assert interrupted == ["interrupted", "interrupted"]  # the rerun and its parent
    assert read_record(tmp_path / "again")["status"] == "interrupted"


@pytest.mark.slow
def test_a_users_options_and_experiment_are_reproduced_on_other_hardware(tmp_path):
    """Options, and the code that they name, are found from the original folder, in the rerun and its workers."""
    there = tmp_path / "there"
    for name, text in {
        "conf/model/mine.yaml": "# Mine\n_target_: mine.Mine\n",
        "conf/experiment/first.yaml": "# @package _global_\ndefaults:\n  - override /model: mine\n"
        "  - override /tracker: tensorboard\ntracker: {}\nseed: 5\n",
        "mine.py": "from fedresearch.models.logistic import Logistic\n\n\nclass Mine(Logistic):\n    pass\n",
    }.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(text)
    run(there, "one", "--config-dir", "conf", "experiment=first", "federation.num_rounds=1", *SHORT[2:4])
    edit_record(there / "one", config_dirs=["conf"])
    (there / "numpy.py").write_text("raise RuntimeError('of the folder, and not the installed one')")
    here = tmp_path / "here"
    here.mkdir()
    hardware = ["hardware=workers", "hardware.workers=1"]
    done = command(here, "reproduce", there / "one", *hardware, "--out", "it's here", rerun="cold")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "identical through round 1"
    record = read_record(here / "it's here")
    expected = {"model": "mine", "tracker": "none", "experiment": "first", "hardware": "workers"}
    assert record["choices"] | expected == record["choices"]
    assert record["digest"] == read_record(there / "one")["digest"]
    assert record["config"]["seed"] == 5


@pytest.mark.slow
def test_a_rerun_that_fails_says_so(finished, copy, tmp_path):
    config = read_record(copy)["config"]
    overrides = [*read_record(copy)["overrides"], "+optimizer.fused_how=no"]
    config["optimizer"]["fused_how"] = "no"  # recorded by code that had this argument
    edit_record(copy, config=config, overrides=overrides)
    done = command(tmp_path, "reproduce", copy, "--out", "again")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the rerun in again is missing; see above"
    assert (
        "optimizer.fused_how is not an argument of SGD; try +optimizer.fused=no; its arguments are "
        in done.stderr.splitlines()[0]
    )
