"""The messages for mistakes on the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedresearch.config import explain, explain_composition, runs_elsewhere
from fedresearch.errors import InputError
from tests import warm

ROOT = Path(__file__).parents[1]

# Replaces the run: a command that reaches it has passed every check, and must not have imported anything heavy.
GUARD = """
import sys, types
stub = types.ModuleType("fedresearch.experiment.run")
stub.run_experiment = lambda **arguments: print("would run")
sys.modules["fedresearch.experiment.run"] = stub
from fedresearch import main
sys.argv = ["main", *sys.argv[1:]]
try:
    main.main()
finally:
    heavy = {"torch", "flwr", "flwr_datasets", "datasets", "wandb", "numpy", "sklearn"} & set(sys.modules)
    print("heavy:", *sorted(heavy), file=sys.stderr)
"""


def command(cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)
    return warm.python("-c", GUARD, *arguments, cwd=cwd, env=environment, preload=warm.LIGHT)


MISTAKES = {
    "an option that does not exist": (
        ["strategy=fedavgg"],
        "strategy=fedavgg does not exist; try strategy=fedavg; strategy may be bulyan, bulyan_flower, centralised, ",
    ),
    "an option in a list that does not exist": (
        ["channel=[topk,clipp]"],
        "channel=clipp does not exist; try channel=clip; channel may be clip, noise, quantise, topk",
    ),
    "a word for an empty list": (
        ["channel=none"],
        "channel=none does not exist; try channel=[]; channel may be clip, noise, quantise, topk",
    ),
    "a path in place of an option": (
        ["channel=conf/channel/clip"],
        "channel=conf/channel/clip does not exist; try channel=clip; channel may be clip, noise, quantise, topk",
    ),
    "a group that does not exist": (
        ["strateggy=fedavg"],
        "unknown key strateggy; try strategy=fedavg; see --help",
    ),
    "more attackers than the cohort bears": (
        ["strategy=krum", "strategy.server.num_malicious_nodes=2"],
        "strategy.server.num_malicious_nodes=2 needs 2 * 2 + 3 = 7 clients, got 5 in a round (federation."
        "fraction_train of federation.num_supernodes); try strategy.server.num_malicious_nodes=1 or federation.fr",
    ),
    "more models than the cohort sends": (
        ["strategy=multikrum", "strategy.server.num_nodes_to_select=9"],
        "num_nodes_to_select=9 needs 9 clients, got 5 in a round (federation.fraction_train of federation.",
    ),
    "weights that contradict each other": (
        ["strategy.server.weighted_by_key=uniform"],
        "strategy.server.weighted_by_key=uniform differs from strategy.weighted_by=num-examples; try strategy.",
    ),
    "values that refer to each other": (
        ["federation.num_rounds=${seed}", "seed=${federation.num_rounds}"],
        "seed refers to itself, got ${federation.num_rounds}; write another value",
    ),
    "a weight that does not exist": (
        ["strategy.weighted_by=loss"],
        "strategy.weighted_by must be num-examples or uniform, got loss; try strategy.weighted_by=num-examples",
    ),
    "a schedule as a value": (
        ["optimizer.schedule=cosine"],
        "without _partial_, _args_ and _convert_; try schedule=cosine",
    ),
    "a schedule's options where they are not": (
        ["schedule=step", "schedule.gamma=0.1"],
        "unknown key schedule; its options are optimizer.schedule.*, such as optimizer.schedule.gamma=0.5; a file in",
    ),
    "an option of SCAFFOLD that does not exist": (
        ["strategy=scaffold", "strategy.client.option=3"],
        "strategy.client.option must be I or II, got 3; try strategy.client.option=II",
    ),
    "FedDyn without its regulariser": (
        ["strategy=feddyn", "strategy.server.alpha=0"],
        "strategy.server.alpha must be > 0 and below 1e38, got 0; try strategy.server.alpha=0.01",
    ),
    "a head that is a number": (
        ["strategy=fedper", "strategy.client.head=3"],
        "strategy.client.head must be a list of the model's modules, or null, got 3; try 'strategy.client.head=[fc3]'",
    ),
    "a mistyped key": (
        ["federation.num_round=3"],
        "unknown key federation.num_round; try federation.num_rounds=3; federation has evaluate_every, "
        "evaluate_initial, evaluate_train, fraction_evaluate, fraction_train, max_failures, nonfinite, num_rounds, "
        "num_supernodes, target_accuracy",
    ),
    "a mistyped key of an option": (["partitioner.alpah=1"], "; try partitioner.alpha=1"),
    "a mistyped key of another option": (
        ["hardware.worker=2"],
        "unknown key hardware.worker; try hardware=workers hardware.workers=2; hardware has no keys",
    ),
    "a key like no other": (["zzzz=1"], "unknown key zzzz; the config has availability, cache_dir, "),
    "a mistyped flag": (["--multirn", "seed=1"], "unknown flag --multirn; try --multirun"),
    "a folder that does not exist": (
        ["--config-dir", "nowhere"],
        "nowhere' not found; try another --config-dir",
    ),
    "a flag of other programs": (
        ["--dry-run", "seed=1"],
        "unknown flag --dry-run; try --cfg job --resolve for a run's config, fedresearch sweep preflight",
    ),
    "a key with dashes": (
        ["--seed=3"],
        "unknown flag --seed; keys are written without dashes: seed=3; see --help",
    ),
    "a key's short name with dashes": (
        ["--lr=0.1", "seed=1"],
        "unknown flag --lr; keys are written without dashes: optimizer.lr=0.1; see --help",
    ),
    "a key and its value with dashes": (
        ["--num-rounds", "5"],
        "unknown flag --num-rounds; keys are written without dashes: federation.num_rounds=5; see --help",
    ),
    "an option's key with dashes": (
        ["--strategy.server.proximal_mu=0.1"],
        "keys are written without dashes: strategy=fedprox strategy.server.proximal_mu=0.1; see --help",
    ),
    "a key like no other with dashes": (["--zzzz", "--seed=1"], "keys are written without dashes: zzzz=...; see"),
    "a blank behind a comma": (
        ["-m", "optimizer.lr=0.01,", "0.1"],
        "a value must not have a blank next to a comma, or end with a comma, got 'optimizer.lr=0.01, 0.1'; "
        "try optimizer.lr=0.01,0.1, or for one text optimizer.lr='\"0.01, 0.1\"'",
    ),
    "blanks before commas": (["seed=0", ",1", ",2", "-m"], "got 'seed=0 ,1 ,2'; try seed=0,1,2, or"),
    "a list with blanks": (
        ["model.widths=[20,", "10]", "seed=1"],
        "got 'model.widths=[20, 10]'; try 'model.widths=[20,10]'",
    ),
    "a comma at the end": (
        ["optimizer.lr=0.01,", "seed=1"],
        "or end with a comma, got 'optimizer.lr=0.01,'; try optimizer.lr=0.01",
    ),
    "a flag's value that does not exist": (["--cfg", "all-of-it"], "argument --cfg/-c: invalid choice: 'all-of-it'"),
    "an added key": (["+foo=1"], "unknown key foo; keys can be added only to options of a group"),
    "an added key of a section": (["+federation.foo=1"], "unknown key federation.foo;"),
    "a word for a number": (
        ["federation.num_rounds=abc"],
        "federation.num_rounds must be an integer >= 1, got abc; try federation.num_rounds=20",
    ),
    "a fraction for an integer": (
        ["federation.num_rounds=2.5"],
        "federation.num_rounds must be an integer >= 1, got 2.5",
    ),
    "a value for a section": (["federation=3"], "federation must be a section of keys, got 3; try federation."),
    "zero rounds": (["federation.num_rounds=0"], "federation.num_rounds must be an integer >= 1, got 0"),
    "too large a fraction": (
        ["federation.fraction_train=2.0"],
        "federation.fraction_train must be in (0, 1], got 2.0; try federation.fraction_train=0.1",
    ),
    "a negative seed": (["seed=-1"], "seed must be an integer >= 0, got -1; try seed=0"),
    "a wrong type in an option": (
        ["partitioner.alpha=abc"],
        "partitioner.alpha must be > 0, got abc; try partitioner.alpha=0.5",
    ),
    "a truth value for a number": (
        ["optimizer.lr=true"],
        "optimizer.lr must be > 0 and below 1e38, got true; try optimizer.lr=0.1",
    ),
    "an infinite learning rate": (["optimizer.lr=.inf"], "optimizer.lr must be > 0 and below 1e38, got .inf;"),
    "an unknown dtype": (["dtype=float16"], "dtype must be float32 or float64, got float16"),
    "an unknown tracker mode": (
        ["tracker.mode=cloud"],
        "tracker.mode must be auto, online, offline or disabled, got cloud",
    ),
    "epochs and steps": (
        ["local.steps=3"],
        "exactly one of local.epochs and local.steps must be set, got 5 and 3; try local.epochs=5 local.steps=null",
    ),
    "neither epochs nor steps": (
        ["local.epochs=null"],
        "exactly one of local.epochs and local.steps must be set, got both null",
    ),
    "more clients than partitions": (
        ["federation.num_supernodes=20", "partitioner.num_partitions=10"],
        "federation.num_supernodes=20 is more than the 10 partitions made; try federation.num_supernodes=10",
    ),
    "nodes to wait for": (
        ["strategy.server.min_train_nodes=2"],
        "strategy.server.min_train_nodes must be 1 (see federation.fraction_train and sampling), got 2; try strategy.",
    ),
    "nodes that a wrapped strategy waits for": (
        ["+strategy.server.strategy={_target_: x, strategy: {_target_: y, min_evaluate_nodes: 3}}"],
        "strategy.server.strategy.strategy.min_evaluate_nodes must be 1 (see federation.fraction_evaluate), got 3; try",
    ),
    "fewer fixed clients than a rule needs": (
        [
            "strategy=krum",
            "sampling=fixed",
            "sampling.partition_ids=[0,1,1,2,2]",
            "strategy.server.num_malicious_nodes=1",
        ],
        "needs 2 * 1 + 3 = 5 clients, got 3 in a round (sampling.partition_ids); try strategy.server.num_m",
    ),
    "nothing to trim": (
        ["strategy=fedtrimmedavg", "federation.num_supernodes=4", "federation.fraction_train=1"],
        "strategy.server.beta=0.2 needs 5 clients to cut one at each end, got 4 in a round (federation.frac"
        "tion_train of federation.num_supernodes); try strategy.server.beta=0.25 or a larger federation.num_supernodes",
    ),
    "missing labels": (
        ["dataset=diabetes"],
        "partitioner=dirichlet partitions by label, which dataset=diabetes does not have; it has "
        "neither labels nor natural ids; try partitioner=iid",
    ),
    "missing natural ids": (
        ["partitioner=natural_id"],
        "partitioner=natural_id partitions by natural_id, which dataset=digits does not have; it has "
        "label; try partitioner=iid",
    ),
    "more classes a client than there are": (
        ["partitioner=pathological", "partitioner.num_classes_per_partition=11"],
        "partitioner.num_classes_per_partition=11 is more than the 10 classes of dataset=digits",
    ),
    "images that are too small": (
        ["model=lenet"],
        "model=lenet needs images of at least 16 x 16 pixels, got dataset=digits",
    ),
    "a model for other input": (
        ["model=char_lstm"],
        "model=char_lstm needs tokens input, got dataset=digits, whose input is image",
    ),
    "no number of clients": (
        ["federation.num_supernodes=null"],
        "federation.num_supernodes=null lets the partitioner choose the number, but partitioner=dirichlet needs one",
    ),
    "nothing to evaluate on": (
        ["validation.fraction=0"],
        "federation.fraction_evaluate > 0 needs validation data on the clients, got validation.fraction=0; "
        "try federation.fraction_evaluate=0",
    ),
    "nesterov without momentum": (["optimizer.nesterov=true"], "optimizer.nesterov=true needs momentum"),
    "a sweep without -m": (
        ["seed=0,1"],
        "seed=0,1 is a sweep of several values: add -m; for a list, type 'seed=[0,1]'; for one text, type seed=",
    ),
    "no override at all": (["foo"], "'foo' is neither a verb nor key=value; verbs are report, sweep, tune, "),
    "an empty word": (["seed=1", ""], "an argument is empty; remove it, or write key=value, as in seed=1"),
    "a range without -m": (["seed=range(3)"], "add -m; for one text, type seed='\"range(3)\"'"),
    "a group set to null": (
        ["model=null"],
        "model must be the name of one option, got null; see --help for its options",
    ),
    "an interpolation to nowhere": (["seed=${nope}"], "Interpolation key 'nope' not found"),
    "an image without sides": (
        ["dataset.declares.input_shape=[64]"],
        "dataset.declares.input_shape of images must be channels, height and width, got [64]",
    ),
    "several options of a group": (
        ["optimizer=[sgd,adam]"],
        'optimizer must be the name of one option, got ["sgd", "adam"]; see',
    ),
    "numbers for options": (["optimizer=[1,2]"], "optimizer must be the name of one option, got [1, 2]; see"),
    "a part of an option": (
        ["strategy=_cohort"],
        "strategy must be the name of an option, neither a path nor a part of options (_NAME), got _cohort; see --help",
    ),
    "a fraction of the cohort": (
        ["strategy.server.fraction_train=0.5"],
        "strategy.server.fraction_train must be 1.0 (see federation.fraction_train), got 0.5",
    ),
    "a word for a truth value": (["dataset=synthetic", "dataset.iid=no"], "dataset.iid must be true or false, got no;"),
    "no learning rate": (["~optimizer.lr"], "optimizer.lr is missing; its option's YAML must give it"),
    "no directory to be had": (["hydra.run.dir=/proc/none"], "No such file or directory: /proc/none; try another"),
    "a group that is removed": (["~model"], "model is not set; write model=..., see --help"),
}


@pytest.mark.parametrize(("overrides", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_in_one_line(tmp_path, overrides, said):
    done = command(tmp_path, *overrides)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[-1] == "heavy:"  # nothing heavy was imported
    assert len(lines) == 2, done.stderr  # one line, no traceback
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not done.stdout
    assert not [*tmp_path.glob("outputs/*")]  # no empty run directory stays behind


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["federation.num_supernodes=0"], {"federation.num_supernodes"}),
        (["partitioner.num_partitions=0"], {"partitioner.num_partitions"}),
        (["strategy=fedtrimmedavg", "strategy.server.beta=0.7"], {"strategy.server.beta"}),
        (["local.epochs=-1", "local.steps=-1"], {"local.epochs", "local.steps"}),
    ],
)
def test_a_value_is_rejected_at_the_typed_key_and_not_at_keys_that_follow_it(compose, words, refused):
    with pytest.raises(InputError) as raised:
        compose(*words)
    assert {line.partition(" ")[0] for line in raised.value.args} == refused


@pytest.mark.parametrize(
    "option", ["../strategy/fedavg", "./fedavg", "fedavg.yaml", "a/../fedavg", "../../conf/strategy/fedavg"]
)
def test_an_option_must_be_a_name_and_not_a_path(compose, tmp_path, option):
    (tmp_path / "strategy" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"strategy must be the name of an option, .*; try strategy=fedavg$"):
        compose(f"strategy={option}", config_dir=tmp_path)


CANNOT_COMPOSE = {
    "strategy/a.yaml": ("defaults: [b, _self_]", "the defaults list of an option leads back to that option"),
    "strategy/mine.yaml": (
        "a: [1",
        r".*/strategy/mine\.yaml is not YAML: expected ',' or '\]', but got '<stream end>' in line 1, column 6",
    ),
    "experiment/dotted.yaml": (
        "# @package _global_\nlocal.epochs: 1",
        "experiment/dotted.yaml has local.epochs as one name; in YAML, write local: .epochs: ",
    ),
    "experiment/mine.yaml": ("seed: 1", "experiment/mine.yaml sets experiment, .* must be: # @package _global_"),
    "tune/mine.yaml": ("seed: 1", "tune/mine.yaml sets tune, .* must be: # @package _global_"),
    "experiment/own.yaml": ("defaults: [override /dataset: fcube]", "experiment/own.yaml sets .* # @package _global_"),
    "schedule/mine.yaml": ("_target_: x", "schedule/mine.yaml sets schedule, .* # @package optimizer.schedule"),
    "dataset/mine.yaml": ("# @package _global_\nfoo: 1", "dataset/mine.yaml sets foo, which the config does not have"),
}


@pytest.mark.parametrize("path", CANNOT_COMPOSE)
def test_a_file_that_does_not_compose_is_reported_in_one_line(compose, tmp_path, path):
    content, said = CANNOT_COMPOSE[path]
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(content)
    (tmp_path / path).with_stem("b").write_text("defaults: [a, _self_]")
    with pytest.raises(Exception) as raised:  # noqa: PT011, its type is up to Hydra
        compose(path.removesuffix(".yaml").replace("/", "="), config_dir=tmp_path)
    (line,) = explain_composition(raised.value).args
    assert re.match(said, line)
    assert "\n" not in line


@pytest.mark.parametrize(
    "words",
    [
        ["federation.num_supernodes=1000000000"],
        ["federation.num_rounds=1000000000"],
        ["local.epochs=1000000000"],
        ["local.epochs=null", "local.steps=1000000000"],
        ["dataset=synthetic", "dataset.num_devices=1000000000"],
        ["dataset.declares.num_classes=1000000000"],
        ["dataset.declares.input_shape=[1,1,1000000000]"],
        ["model.widths=[10,1000000000]"],
    ],
    ids=lambda words: words[-1],
)
def test_sizes_beyond_any_machine_are_rejected(compose, words):
    key = words[-1].partition("=")[0]
    with pytest.raises(InputError, match=rf"{re.escape(key)} must be at most 1(0,000|,000,000), got .*1000000000"):
        compose(*words)


def test_a_superlink_with_too_many_processes_is_rejected(compose):
    with pytest.raises(InputError, match=r"at most 1,000, got federation.num_supernodes=100000; try hardware=workers"):
        compose("hardware=superlink", "federation.num_supernodes=100000")


def test_hardware_runs_the_whole_experiment_only_if_it_declares_so(compose):
    assert runs_elsewhere(compose("hardware=superlink")[0])
    assert not runs_elsewhere(compose("+hardware.root_certificates=ca.pem")[0])


def test_an_option_may_be_in_a_subfolder_of_its_group(compose, tmp_path):
    (tmp_path / "strategy" / "mine").mkdir(parents=True)
    (tmp_path / "strategy" / "mine" / "mean_v0.1.yaml").write_text("defaults: [/strategy/fedavg@_here_]")
    assert compose("strategy=mine/mean_v0.1", config_dir=tmp_path)[1]["strategy"] == "mine/mean_v0.1"


@pytest.mark.parametrize(
    ("word", "said"),
    {
        "+strategy.foo=1": r"unknown key strategy\.foo, which nothing reads; strategy has .*, pooled, server, client; ",
        "+strategy.pool=true": r"unknown key strategy\.pool, which nothing reads; try strategy\.pooled;",
        "+dataset.declares.shape=[1]": r"unknown key dataset\.declares\.shape, which nothing reads",
        "+model.requires.side=8": r"unknown key model\.requires\.side, which nothing reads",
        "+model._convert_=none": "model must be a section with a _target_, without _partial_, _args_ and _convert_",
        "+model@other=mlp": "Key 'other' not in 'Config'",
    }.items(),
)
def test_an_added_key_that_nothing_reads_is_rejected(compose, word, said):
    with pytest.raises((InputError, HydraException), match=said):
        compose(word)


@pytest.mark.parametrize(
    "word",
    [
        "+model.num_classes=3",
        "+model.input_shape=[1]",
        "+optimizer.params=[1]",
        "+optimizer.schedule.lr=1",
        "+sampling.cohort_size=3",
        "+hardware.num_supernodes=3",
    ],
)
def test_an_argument_that_the_run_sets_is_rejected(compose, word):
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    key = word.partition("=")[0].rpartition(".")[2]
    with pytest.raises(InputError, match=f"{key} cannot be set, the run gives it; remove {key}"):
        prepare(Experiment(*compose(word, "model=logistic", "tracker=none")))


# Characters with a meaning for a shell or Hydra, and a few letters.
ODD = st.text("ab0 =#(),:;'\"\\$@%&*!?|<>~^`/.-_+\u6570\u00e9\u1f600{}[]", min_size=1, max_size=12)


@given(ODD)
@settings(deadline=None, max_examples=300)
@example("/tmp/\u6570\u636e")
@example('it\'s (a) "b"\\')
@example("\\")
@example("a${b#")
def test_an_override_that_hydra_cannot_read_is_shown_as_it_must_be_typed(value):
    parser = OverridesParser.create()
    try:
        parser.parse_overrides([f"name={value}"])
    except HydraException as error:
        (line,) = explain(error).args
        *_, word = shlex.split(line.partition("; try ")[2])
        (override,) = parser.parse_overrides([word])
        assert override.key_or_group == "name"
        # As typed, except that a ${ that does not begin an interpolation is escaped to be text.
        assert override.value() == value or OmegaConf.create({"name": override.value()}).name == value


def test_each_of_several_mistakes_is_reported(tmp_path):
    done = command(tmp_path, "seed=-1", "federation.fraction_train=3", "local.batch_size=-5")
    assert done.stderr.splitlines()[:3] == [
        "error: seed must be an integer >= 0, got -1; try seed=0",
        "error: federation.fraction_train must be in (0, 1], got 3.0; try federation.fraction_train=0.1",
        "error: local.batch_size must be an integer >= 0 (0: the full batch), got -5; try local.batch_size=10",
    ]


def test_a_sweep_with_a_bad_job_does_not_start(tmp_path):
    done = command(tmp_path, "-m", "seed=0,-1,2")
    assert done.returncode == 1
    assert done.stdout.count("would run") == 0
    assert "error: job seed=-1: seed must be an integer >= 0, got -1; try seed=0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--help"], "fedresearch -m partitioner.alpha=0.1,1,10 seed=0,1,2"),
        (["--help"], "fedresearch 'channel=[clip,topk]'"),
        (["--cfg", "job", "--resolve"], "  num_partitions: 10\n"),
        (["--info", "defaults-tree"], "dataset: digits"),
        (["--shell-completion", "install=bash"], "complete"),
        (["--version"], "fedresearch 0."),
    ],
)
def test_commands_that_only_print_import_nothing_heavy(tmp_path, arguments, printed):
    done = command(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert done.stderr.splitlines()[-1] == "heavy:"
    assert not (tmp_path / "outputs").exists()


def test_help_shows_every_option_with_a_description(tmp_path):
    printed = command(tmp_path, "--help").stdout
    options = sorted((ROOT / "conf").glob("*/[!_]*.yaml"))
    assert len(options) > 30
    for option in options:
        line = next(line for line in printed.splitlines() if line[4:].split(" ")[0] == option.stem)
        description = line[4 + len(option.stem) :].strip()
        assert description, option
        assert description[0] not in "#_@{", option
        assert len(line) <= 120, option


@pytest.mark.parametrize("word", ["strategy=fedavgg", "typo"])
def test_the_traceback_is_available_on_request(tmp_path, word):
    done = subprocess.run(
        [sys.executable, "-m", "fedresearch.main", word],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_digest_counts_what_determines_the_numbers(compose):
    from fedresearch.config import digest

    base, _ = compose()
    same = [compose("name=x")[0], compose("tracker=none")[0], compose("cache_dir=elsewhere")[0]]
    other = [compose(o)[0] for o in ("seed=1", "optimizer.lr=0.2", "model=logistic", "federation.num_rounds=3")]
    assert {digest(config) for config in same} == {digest(base)}
    assert len({digest(config) for config in [base, *other]}) == 5
    assert digest(other[0], seeds=False) == digest(base, seeds=False)
    for key in ("root", "path"):
        here, there = (
            compose("dataset=mnist", f"dataset.{key}={at}", f"cache_dir={at}")[0] for at in ("here", "there")
        )
        assert digest(here) == digest(there)
    cube = [compose("dataset=fcube", f"seed={seed}", "dataset.seed=${seed}")[0] for seed in (1, 2)]
    assert digest(cube[0]) != digest(cube[1])
    assert digest(cube[0], seeds=False) == digest(cube[1], seeds=False)


OWN = {
    "strategy": (
        "defaults: [_cohort, _self_]\nserver: {_target_: mine.Mine, alpha: -5, num_malicious_nodes: 1}",
        ["strategy.server.num_malicious_nodes=-1", "strategy.server.fraction_train=0.5"],
    ),
    "dataset": (
        "defaults: [_hub, _self_]\nname: me/mine\nalpha: -1\nmean: [0.5]\nstd: [0.5]\n"
        "declares: {input: image, input_shape: [1, 8, 8], num_classes: 10, columns: [label]}",
        ["dataset.path=3", "dataset.declares.num_classes=0"],
    ),
    "partitioner": (
        "_target_: mine.Partitioner\nnum_partitions: ${federation.num_supernodes}\nalpha: -1\npartition_sizes: all",
        ["partitioner.num_partitions=0"],
    ),
    "optimizer": ("_target_: mine.SGD\nlr: 0.1\nmomentum: 2\nnesterov: true", ["optimizer.lr=0"]),
    "schedule": ("# @package optimizer.schedule\n_target_: mine.schedule\nmin_lr: [9]", []),
    "sampling": ("_target_: mine.draw\npartition_ids: everyone", []),
    "hardware": ("_target_: mine.Grid\nworkers: -1\ntimeout_s: never\ndevice: cpu", ["hardware.device=tpu"]),
    "tracker": ("_target_: mine.Tracker\nmode: loud\nproject: a/b", []),
}


@pytest.mark.parametrize("group", OWN)
def test_a_users_own_option_does_not_have_the_ranges_of_our_options(compose, tmp_path, group):
    text, refused = OWN[group]
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    assert compose(f"{group}=mine", config_dir=tmp_path)
    for word in refused:  # the rules of every option of the group, or of a part that it includes
        with pytest.raises(InputError, match=rf"^{word.partition('=')[0]} must be "):
            compose(f"{group}=mine", word, config_dir=tmp_path)


def test_an_option_that_includes_one_of_ours_has_its_ranges(compose, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("defaults: [feddyn, _self_]\nserver: {alpha: 0.1}")
    line = r"^strategy\.server\.alpha must be > 0 and below 1e38, got -5; try strategy\.server\.alpha=0\.01$"
    for option in ("mine", "feddyn"):
        with pytest.raises(InputError, match=line):
            compose(f"strategy={option}", "strategy.server.alpha=-5", config_dir=tmp_path)
