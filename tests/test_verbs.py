"""The verbs of the command line refuse wrong arguments in one line, before anything runs."""

import os
import sys

import pytest

from fedresearch import main
from fedresearch.config.help_text import help_text
from fedresearch.config.verbs import VERBS, reporting
from tests.records import make


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """Return a function from a command line, typed in an empty folder, to its error."""
    monkeypatch.chdir(tmp_path)

    def refusal_(*words):
        monkeypatch.setattr(sys, "argv", ["fedresearch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, error = capsys.readouterr()
        assert (ended.value.code, out) == (1, "")
        lines = error.splitlines()
        assert all(line.startswith("error: ") for line in lines)
        return "\n".join(line.removeprefix("error: ") for line in lines)

    return refusal_


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("compare", "the following arguments are required: A, B; try fedresearch compare --help"),
        ("compare a", "the following arguments are required: B; try fedresearch compare --help"),
        ("compare a b c", "unrecognized arguments: c; try fedresearch compare --help"),
        ("reproduce", "the following arguments are required: RUN_DIR; try fedresearch reproduce --help"),
        ("report", "the following arguments are required: DIR; try fedresearch report --help"),
        ("report a --bsaeline x", "unrecognized arguments: --bsaeline x; did you mean --baseline?"),
        ("tune a --kye=x", "unrecognized arguments: --kye=x; did you mean --key?"),
        ("report a --lr 1", "unrecognized arguments: --lr 1; try fedresearch report --help"),
        ("app a --num-supernode 3", "unrecognized arguments: --num-supernode 3; did you mean --num-supernodes?"),
        ("tune", "the following arguments are required: SWEEP_DIR; try fedresearch tune --help"),
        ("tune a --key", "argument --key: expected one argument; try fedresearch tune --help"),
        ("app", "the following arguments are required: PATH; try fedresearch app --help"),
    ],
)
def test_wrong_arguments_of_a_verb_are_refused_in_one_line(refusal, words, line):
    assert refusal(*words.split()) == line


@pytest.mark.parametrize(
    ("words", "got", "meant"),
    [
        ("", "nothing", "status SWEEP_DIR"),
        ("status", "status", "status SWEEP_DIR"),
        ("status a b", "status a b", "status SWEEP_DIR"),
        ("statsu a", "statsu a", "status SWEEP_DIR"),
        ("preflihgt seed=0,1", "preflihgt seed=0,1", "preflight seed=0,1"),
    ],
)
def test_a_wrong_verb_of_a_sweep_is_refused_in_one_line(refusal, words, got, meant):
    assert refusal("sweep", *words.split()) == (
        "sweep must be followed by status and a directory, or by preflight and a sweep's arguments, "
        f"got {got}; try fedresearch sweep {meant}"
    )


ALL = "verbs are report, sweep, tune, compare, reproduce, app; a run needs none, as in fedresearch strategy=fedavg; "


@pytest.mark.parametrize(
    ("words", "word", "meant"),
    [
        ("reprot x", "reprot", "did you mean fedresearch report x?"),
        ("compere a b", "compere", "did you mean fedresearch compare a b?"),
        ("tun a --key strategy", "tun", "did you mean fedresearch tune a --key strategy?"),
        ("run strategy=fedavg", "run", "try fedresearch strategy=fedavg"),
        ("run -m seed=0,1", "run", "try fedresearch -m seed=0,1"),
        ("run report x", "run", "try fedresearch report x"),
        ("help", "help", "try fedresearch --help"),
        ("help report", "help", "try fedresearch report --help"),
        ("status a", "status", "try fedresearch sweep status a"),
        ("version", "version", "try fedresearch --version"),
        ("strategy fedavg", "strategy", "try strategy=fedavg"),
        ("-m seed=0,1 strategy fedavg,fedprox", "strategy", "try strategy=fedavg,fedprox"),
        ("experiment", "experiment", "try experiment=OPTION"),
        ("strategy: fedavg", "strategy:", "try strategy=fedavg"),
        ("lr:0.1", "lr:0.1", "try optimizer.lr=0.1"),
        ("lr 0.1", "lr", "try optimizer.lr=0.1"),
        ("seed 1", "seed", "try seed=1"),  # and not sweep
        ("resume outputs", "resume", "try resume=outputs"),
        ("seed=1 fedavg", "fedavg", "try strategy=fedavg"),
        ("sweep preflight strategy fedavg,fedprox", "strategy", "try strategy=fedavg,fedprox"),
        ("foo", "foo", f"{ALL}see --help"),
        ("--cfg job foo seed=1", "foo", f"{ALL}see --help"),
        ("x" * 300, "x" * 300, f"{ALL}see --help"),
        ("../mine", "../mine", f"{ALL}see --help"),
    ],
)
def test_a_word_that_is_no_override_is_refused_with_what_it_may_mean(refusal, words, word, meant):
    assert refusal(*words.split()) == f"{word!r} is neither a verb nor key=value; {meant}"


@pytest.mark.parametrize(
    "words",
    ["--baseline x report a", "--baseline strategy=fedavg report a b", "--rows strategy --cols seed report a"],
)
def test_a_verb_comes_first(refusal, words):
    first = words.split()[0]
    assert refusal(*words.split()) == (
        f"report must be the first word, got {first} before it; try fedresearch report {words.replace('report ', '')}"
    )


RUNS = "name a directory with runs or sweeps, such as outputs/sweep_DIGEST"
SWEEP = "name a sweep's directory, such as outputs/sweep_DIGEST"
RUN = "name a run's directory, such as outputs/DATE_TIME"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("report no file", [f"no does not exist; {RUNS}", f"file is not a directory; {RUNS}"]),
        ("tune no", [f"no does not exist; {RUNS}"]),
        ("sweep status no", [f"no does not exist; {SWEEP}"]),
        ("sweep status file", [f"file is not a directory; {SWEEP}"]),
        ("reproduce no", [f"no does not exist; {RUN}"]),
        ("compare no none", [f"no does not exist; {RUN}", f"none does not exist; {RUN}"]),
        ("compare file none", [f"file is not a directory; {RUN}", f"none does not exist; {RUN}"]),
        (f"compare none {'x' * 300}", [f"none does not exist; {RUN}", f"{'x' * 300} does not exist; {RUN}"]),
        ("resume=no seed=1", [f"no does not exist; {RUN}"]),
        ("resume=no/none", [f"no/none does not exist; {RUN}"]),
    ],
)
def test_a_path_that_does_not_exist_is_reported_to_not_exist(refusal, tmp_path, words, lines):
    (tmp_path / "file").touch()
    assert refusal(*words.split()).splitlines() == lines


def test_an_app_that_does_not_exist_is_reported_to_not_exist(refusal, tmp_path):
    hint = "name the folder that flwr run needs, with its pyproject.toml"
    assert refusal("app", "no") == f"{tmp_path / 'no'} does not exist; {hint}"


def test_a_folder_of_runs_or_a_slip_in_its_name_lists_the_newest_runs(refusal, tmp_path):
    for age, name in enumerate(["first", "sweep/job", "second", "third"]):
        make(tmp_path / "outputs" / name)
        os.utime(tmp_path / "outputs" / name / "run.json", (1000 + age, 1000 + age))
    newest = "the newest runs in outputs: outputs/third, outputs/second, outputs/sweep/job"
    assert refusal("resume=outputs") == f"outputs holds no run: it has no run.json; {newest}"
    assert refusal("resume=outputs/thrid") == f"outputs/thrid does not exist; {newest}"
    assert refusal("reproduce", "outputs") == f"outputs holds no run: it has no run.json; {newest}"
    assert refusal("compare", "outputs/third", "outputs/four") == f"outputs/four does not exist; {newest}"
    assert refusal("resume=outputs/third/run.json") == (
        "outputs/third/run.json is not a directory; the newest runs in outputs/third: outputs/third"
    )


@pytest.mark.parametrize("words", [[verb] for verb in VERBS] + [["sweep", "status"], ["sweep", "preflight"]])
def test_every_verb_prints_its_help(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["fedresearch", *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    assert f"fedresearch {words[0]} " in capsys.readouterr().out
    assert f"\n    fedresearch {words[0]} " in help_text()


@pytest.mark.parametrize(
    ("error", "explained", "line"),
    [
        (FileNotFoundError(2, "No such file", "x"), Exception, "error: x cannot be read: No such file"),
        (FileNotFoundError(2, "No such file", "x"), KeyError, None),
        (ZeroDivisionError("of the code"), Exception, None),
        (BrokenPipeError("of the reader"), Exception, None),
    ],
)
def test_only_what_a_user_can_repair_becomes_a_line(capsys, error, explained, line):
    with pytest.raises(SystemExit if line else type(error)), reporting(explained):
        raise error
    assert capsys.readouterr().err.splitlines() == ([line] if line else [])
