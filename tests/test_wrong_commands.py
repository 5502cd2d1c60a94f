"""About a thousand wrong command lines, derived from the rules and the options: each is rejected in lines that name it.

The normal suite tries thirty of them, ``./scripts/test --long`` all.
"""

import functools
import itertools
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedresearch.config.help_text import CONF
from fedresearch.config.options import our_keys
from fedresearch.config.rules import RULES, SHARED
from fedresearch.config.schema import GROUPS, LISTS, Config
from fedresearch.errors import InputError
from tests.conftest import LONG
from tests.test_config import command


class Wrong(NamedTuple):
    """A wrong command line, and what its error must name."""

    words: list[str]
    named: str


@functools.cache
def value_of(word):
    return OverridesParser.create().parse_override(f"key={word}").value()


# Values as typed, by the type of a rule's example; wrong for any key with that type. A key gets some of them.
NEVER = {
    int: ["nan", "inf", "word", "\u6570", "{a:1}", "''", "[nan]", "[word]"],
    float: ["nan", "-inf", "1e39", "-1e39", "word", "{a:1}", "", "[nan]", "true"],
    bool: ["nan", "word", "[true]", "''", "{a:true}", "0.5"],
    list: [],
    str: ["[[1]]", "{a:word}"],
    dict: ["word", "3"],
}
PERHAPS = [
    "-1",
    "0",
    "1.5",
    "1000000000000",
    "null",
    "nowhere",
    "[]",
    "[[1]]",
    "[a,nan]",
    "{a:1}",
    "[-1]",
    "true",
    "''",
]
SOME = 3


def of_rules():
    options = {}
    for path in sorted(CONF.glob("*/[!_]*.yaml")):
        for key in our_keys(f"{path.parent.name}/{path.stem}") if path.parent.name in GROUPS else ():
            options.setdefault(key, [f"{path.parent.name}={path.stem}"])
    for number, (key, rules) in enumerate(
        itertools.groupby(sorted(RULES, key=lambda rule: rule.key), lambda rule: rule.key)
    ):
        holds = [rule.holds for rule in rules]
        example = value_of(next(rule.example for rule in RULES if rule.key == key))
        refused = [word for word in PERHAPS if not all(held(value_of(word)) for held in holds)]
        of_schema = key.partition(".")[0] not in GROUPS
        if of_schema and type(example) in (str, bool):
            refused = []  # OmegaConf converts numbers to texts and truth values
        never = itertools.cycle(NEVER.get(type(example), NEVER[str]) or refused)
        words = {*itertools.islice(never, number, number + SOME), *refused[number % 3 :][:SOME]}
        for word in sorted(words):
            if key != "resume":  # its error names a directory
                yield Wrong([*options.get(key, []), f"{'' if of_schema or key in options else '+'}{key}={word}"], key)


NO_OPTIONS = [
    *("nowhere", "_cohort", "../x", "./x", "x.yaml", "[]", "[a]", "{a:1}", "nan", "3", "true", "null", "", "\u6570"),
    *("/etc/passwd", "[sgd,adam]", "a b", "${x}", "*", "a:b", "_self_", "x" * 300, "[a,a]"),
]


NO_LISTS = {("[]", group) for group in LISTS}  # these are right


def of_groups():
    for group in GROUPS:
        words = [word for word in NO_OPTIONS if (word, group) not in NO_LISTS]
        yield from (Wrong([f"{group}={word}"], word[2:-1] if "$" in word else group) for word in words)
        wrong = "~{0}", "+{0}=x", "++{0}=x", "{0}@x=y", "{0}.zzz=1", "{0}.=1", ".{0}=1", "{0}", "{0}:x", "--{0}=x"
        yield from (Wrong([word.format(group)], group) for word in wrong)
        yield Wrong([f"{group.upper()}=x"], group.upper())
        for words in ("", "nowhere,nowhere", "glob(zzz*)", "glob(_*)", "3,null"):
            yield Wrong(["-m", f"{group}={words}"], group)
    for group in ("experiment", "tune"):
        for word in ("nowhere", "../x", "[]", "[a,b]", "_x/fedavg", "{a:1}", "3", "true", "./x", "x.yaml", "nan", "*"):
            yield Wrong([f"{group}={word}"], group)
    yield Wrong(["experiment=[li2022_fcube,mcmahan2017_table1_2nn]"], "experiment")
    yield Wrong(["-m", "experiment=li2022_fcube,mcmahan2017_table1_2nn"], "experiment")
    yield Wrong(["-m", "experiment=flower_tutorial,[li2022_fcube,flower_tutorial]"], "experiment")


def of_keys():
    slips = "lr learning_rate LR rounds epochs batch_size alpha mu num_clients nlr federation.num_round"
    for key in (*slips.split(), "local.lr", "optimizer.lrr", "dataset.declares.shape", "strategy.server.foo"):
        yield from (Wrong([f"{sign}{key}=1"], key) for sign in ("", "+", "++") if "." not in key or not sign)
        yield Wrong([f"~{key}"], key)
    keys = "seed dtype federation local.epochs federation.num_rounds optimizer.lr strategy.weighted_by strategy.pooled"
    sections = "hydra.run hydra.job hydra.sweep hydra.mode"
    for key in keys.split():
        name = key.rpartition(".")[2]
        for word in (
            "{}x=1",
            "{}.x=1",
            "+{}.x=1",
            "{}=[1,{{x:1}}]",
            "{}",
            "{}:=1",
            "{}=${{",
            "{}=1,2",
            "~~{}",
            "{}..x=1",
        ):
            yield Wrong([word.format(key)], name)
        for value in ("nope.x", "oc.env:NOPE", "nope:1", "tuned:nope"):
            yield Wrong([f"{key}=${{{value}}}"], "NOPE" if "NOPE" in value else "nope")
        yield from (Wrong(["-m", f"{key}={word}"], name) for word in ("{x:1},{y:2}", "range(3,3)", "range(1,0)"))
        yield Wrong([f"{key}=${{{key}}}"], name)
    yield from (Wrong([f"+{key}.x=1"], "hydra.") for key in sections.split())
    yield Wrong(["optimizer.lr=${partitioner.alpha}", "partitioner.alpha=${optimizer.lr}"], "lr")
    yield Wrong(["federation.num_rounds=${seed}", "seed=${federation.num_rounds}"], "seed")


WORDS = {
    "seed": [
        *("seed=", "seed==1", "seed= 1 2", "seed='1", 'seed="1', "seed=1'", "seed=(1)", "seed=[1", "seed=1]"),
        *("seed={", "seed=1,", "seed=,1", "seed=,", "seed=#1", "seed=$1", "seed=\\", "seed=@", "seed=!1", "seed=1;ls"),
        *("seed=`ls`", "seed=$(ls)", "seed=|", "seed=\n", "seed=1\nname=x", "seed=\x01", "seed=\u200b1", "seed=1e3"),
        *("seed=None", "seed=infinity", "seed=1e1000", "seed=0x10", "seed=--1", "seed=False x", "seed:1", "seed 1"),
        *("seed+=1", "seed-=1", "seed->1", "+~seed=1", "+++seed=1", "--seed=1", "--seed", "Seed=1"),
        *("seed=choice()", "seed=choice(1,2)", "seed=interval(1,2)", "seed=range()", "seed=range(1,2,3,4)"),
        *("seed=range(a)", "seed=glob(*)", "seed=nope(1)", "seed=sort()", "seed=shuffle(1,2)", "seed=tag(a)"),
        *("seed=https://x", "seed@x=1", "seed=" + "x" * 100_000, "seed=\u0664x", "seed=[0]", "seed=0;1"),
    ],
    "name": [
        "name=" + "x" * 129,
        "name=a\nb",
        "name=[a]",
        "name={a:b}",
        "name=a(b",
        "name='a",
        "name=it's",
        "name=${x",
    ],
    "": [
        *("", " ", "=", "=1", "==", "@=1", "+", "~", "1", "*", "?", "[1]", "{a:1}", "a.yaml", "/etc/passwd"),
        *("https://x.y/z=1", "\u6570=1", "\u202eseed=1", "a b=1", "a/b=1", "a@b=1", "0=1", "x" * 5000 + "=1"),
    ],
    "-": [
        *("-1", "-x", "--multirunn", "--cfg", "--cfg=nope", "--config-name", "--config-path", "--config-dir", "--lr"),
        *("--info=nope", "--shell-completion=1", "--resolve=1", "--experimental-rerun=x", "--dry-run", "--config=a"),
        *("--resume=x", "--sweep", "--no-cuda", "--gpu", "--verbose", "-v", "-V", "--num-rounds=3", "-n3"),
    ],
    "nope": ["--config-name=nope", "-cn=nope", "--config-dir=nope", "-cd=nope", "resume=nope", "resume=/nope"],
    "federation": [
        *("federation.0=1", "federation[num_rounds]=1", "federation.num_rounds[0]=1", "federation[]=1"),
        *("[federation]=1", "federation={num_rounds:0}", "federation={numrounds:1}", "federation={num_rounds=1}"),
        *("federation=null", "federation=", "federation=3", "{federation:{num_rounds:1}}", "federation/num_rounds=1"),
    ],
    "model": ["model=mlp,", "model=mlp:widths", "model=(mlp)", "model=mlp model=lenet", "model.widths=extend_list(a)"],
    "strategy": ["strategy=fedavg;fedprox", "strategy=a|b", "strategy=[fedavg]", "strategy={fedavg}", "strategy=fed*"],
    "lr": [
        *("optimizer.lr=0,1", "optimizer.lr=.1.", "optimizer.lr=1/10", "optimizer.lr=10%", "optimizer.lr='0.1'"),
        *("optimizer.lr=0.1f", "optimizer.lr=[0.1]", "optimizer.lr=1e-400", "optimizer.lr=-0.0", "optimizer.lr=1j"),
    ],
}


def test_every_key_of_the_schema_has_a_rule():
    sections = {one.name: one.type for one in fields(Config)}
    keys = {f"{name}.{one.name}" for name, kind in sections.items() if is_dataclass(kind) for one in fields(kind)}
    keys |= {name for name in sections if name not in GROUPS} - {key.partition(".")[0] for key in keys}
    assert keys <= {rule.key for rule in SHARED}


def of_words():
    return (Wrong([word], named) for named, words in WORDS.items() for word in words)


SWEEPS = {
    "seed": [
        *("seed=range(0)", "seed=range(1000000)", "seed=range(10**6)", "seed=range(0,inf)", "seed=range(0,-1)"),
        *("seed=interval(0,1)", "seed=choice(a,b)", "seed=1,a", "seed=1,,2", "seed=1,-1", "seed=[1,2]"),
        *("seed=shuffle()", "seed=range(2),range(2)", "+hydra.sweeper.params.seed='1,x'", "seed=0.5,1.5"),
    ],
    "zzz": ["zzz=1,2", "+zzz=1,2", "+hydra.sweeper.params.zzz='1,2'", "optimizer.zzz=1,2", "strategy.zzz=1"],
    "nope": ["strategy=fedavg,nope", "hydra/sweeper=nope", "hydra/launcher=nope", "hydra.launcher._target_=nope"],
    "channel": ["channel=[clip,clip]", "channel=[clip,clip],[topk]"],
    "optuna": ["hydra/sweeper=optuna"],
    "_cohort": ["strategy=_cohort", "strategy=fedavg,_cohort"],
    "hydra.sweep": [
        *("hydra.sweep.subdir=", "hydra.sweep.subdir=../x", "hydra.sweep.subdir=/tmp/x", "hydra.sweep.dir="),
        *("hydra.sweep.dir=/proc/x", "hydra.sweep.dir=/dev/null/x", "+hydra.sweep.x=1", "hydra.sweep=3"),
    ],
    "resume": ["resume=nowhere"],
    "hydra.sweeper": ["hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size=x", "hydra.sweeper.zzz=1"],
}
OF_HYDRA = [
    *("hydra.mode=NOPE", "hydra.run.dir=", "hydra.run.dir=/proc/x", "hydra.run.dir=/dev/null", "hydra.run.dir=[a]"),
    *("hydra.run.dir=${nope}", "hydra.run.dir=${nope:1}", "hydra.job.chdir=maybe", "hydra.job.num=x", "hydra.nope=1"),
    *("hydra.job.env_set=3", "hydra=3", "hydra=null", "~hydra", "+hydra.nope=1", "hydra/nope=1", "hydra.run=3"),
    *("hydra/job_logging=nope", "hydra/output=nope", "hydra.searchpath=nope", "hydra.searchpath=[file:///nope]"),
    *("hydra.callbacks=3", "hydra/launcher=nope", "hydra.job.id=[1]"),
]


def of_hydra():
    yield from (Wrong(["-m", word], named) for named, words in SWEEPS.items() for word in words)
    yield Wrong(["-m", "hydra.sweep.subdir=same", "seed=0,1"], "hydra.sweep.subdir=same")
    yield Wrong(["-m", "strategy=fedavg,fedprox", "strategy.server.nope=1,2"], "strategy.server.nope")
    yield from (Wrong([word], "") for word in OF_HYDRA)


# Values that are possible alone, but not together.
TOGETHER = {
    "local.steps": ["local.steps=3", "local.epochs=null", "local.epochs=2 local.steps=2"],
    "validation.fraction": ["validation.fraction=0"],
    "num_supernodes": [
        "federation.num_supernodes=null",
        "partitioner.num_partitions=3",
        "hardware=superlink partitioner=natural_id federation.num_supernodes=null",
        "hardware=superlink federation.num_supernodes=2000",
    ],
    "num_malicious_nodes": [f"strategy={rule} strategy.server.num_malicious_nodes=3" for rule in ("krum", "multikrum")],
    "strategy.server.beta": ["strategy=fedtrimmedavg federation.num_supernodes=4"],
    "strategy.trim": ["strategy=fedtrimmedavg strategy.trim=0.01"],
    "weighted_by": ["strategy.server.weighted_by_key=uniform"],
    "natural_id": ["partitioner=natural_id", "partitioner.partition_by=natural_id", "partitioner=grouped_natural_id"],
    "dataset=diabetes": ["dataset=diabetes", "dataset=diabetes partitioner=pathological"],
    "num_classes_per_partition": ["partitioner=pathological partitioner.num_classes_per_partition=11"],
    "model": [
        "model=lenet",
        "model=char_lstm",
        "model=cnn_mcmahan dataset=synthetic",
        "model=lenet dataset=shakespeare",
    ],
    "optimizer.nesterov": ["optimizer.nesterov=true"],
    "hardware.secure": ["hardware=superlink hardware.secure=true hardware.address=a:1"],
    "hardware.root_certificates": ["hardware=superlink hardware.root_certificates=ca.pem"],
    "hardware.address": ["hardware=superlink hardware.address=auto"],
    "input_shape": ["dataset.declares.input_shape=[64]", "dataset.declares.input_shape=[1,8]"],
    "min_lr": ["schedule=cosine optimizer.schedule.min_lr=5"],
    "target_accuracy": [
        "dataset=diabetes partitioner=iid dataset.declares.num_classes=1 federation.target_accuracy=0.9"
    ],
}


def together():
    return (Wrong(words.split(), named) for named, several in TOGETHER.items() for words in several)


LINES = [*of_rules(), *of_groups(), *of_keys(), *of_words(), *of_hydra(), *together()]
SAMPLE = LINES if LONG else LINES[:: len(LINES) // 30]


def test_the_list_is_long():
    assert len({(*line.words,) for line in LINES}) == len(LINES) > 550


@pytest.mark.parametrize("line", SAMPLE, ids=lambda line: " ".join(line.words)[:80])
def test_a_wrong_command_line_is_rejected_in_lines_that_name_it(tmp_path, line):
    done = command(tmp_path, *line.words)
    *lines, heavy = done.stderr.splitlines()
    assert done.returncode == 1
    assert 1 <= len(lines) <= 3, done.stderr
    assert all(said.startswith("error: ") and len(said) < 3000 for said in lines), done.stderr
    assert heavy == "heavy:"  # nothing heavy was imported
    assert line.named in done.stderr
    assert "would run" not in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "sweep.json"]


# Mistakes that no rule knows, and a constructor rejects.
BUILT = {
    "model=mlp: module nowhere does not exist": ["model._target_=nowhere"],
    "model=mlp: torch.nn": ["model._target_=torch.nn.Nope"],
    "model=mlp: Expected a callable": ["model._target_=math.pi"],
    "model=mlp: Empty path": ["model._target_=''"],
    "model=mlp: model must make a Module": ["model._target_=builtins.dict"],
    "model=mlp: model.widths is not an argument of Linear; leave it out; its arguments are in_features, ": [
        "model._target_=torch.nn.Linear"
    ],
    "model=mlp: model.width is not an argument of MLP; try 'model.widths=[5]'; its arguments are widths": [
        "+model.width=[5]"
    ],
    "optimizer=sgd: module nope does not exist": ["optimizer._target_=nope.Nope"],
    "optimizer=sgd: optimizer.momentun is not an argument of SGD; try optimizer.momentum=0.5; its arguments are ": [
        "+optimizer.momentun=0.5"
    ],
    "schedule=constant: optimizer.schedule.zzz is not an argument of constant; leave it out; no argument can be set": [
        "+optimizer.schedule.zzz=1"
    ],
    "schedule=step: math.sqrt": ["schedule=step", "optimizer.schedule._target_=math.sqrt"],
    "partitioner=dirichlet: math.sqrt": ["partitioner._target_=math.sqrt"],
    "partitioner=dirichlet: no signature": ["partitioner._target_=builtins.dict"],
    "partitioner=dirichlet: If passing alpha": ["partitioner.alpha=[0.1,0.2]"],
    "dataset=mnist: dataset.foo is not an argument of load; leave it out; its arguments are image, ": [
        "dataset=mnist",
        "dataset.root=DIR",
        "+dataset.foo=1",
    ],
    "DirichletPartitioner cannot": ["partitioner.min_partition_size=10000"],
    "ShardPartitioner cannot": ["partitioner=shard", "partitioner.num_shards_per_partition=null"],
    "partitioner=distribution: the number of clients": ["partitioner=distribution", "federation.num_supernodes=7"],
    "sampling=fixed: partition ids": ["sampling=fixed", "sampling.partition_ids=[99]"],
    "sampling=uniform: sampling.zzz is not an argument of uniform; leave it out; no argument can be set": [
        "+sampling.zzz=1"
    ],
    "strategy=fedavg: strategy.server must make": ["strategy.server._target_=builtins.dict"],
    "strategy=fedavg: strategy.server.train_aggr_fn is not an argument of FedAvg; try "
    "+strategy.server.train_metrics_aggr_fn=1; its arguments are fraction_train, ": [
        "+strategy.server.train_aggr_fn=1"
    ],
    "strategy=bulyan: strategy.server.zzz is not an argument of Bulyan; leave it out; its arguments are ": [
        "strategy=bulyan",
        "+strategy.server.zzz=1",
    ],
    "strategy=fedavg: strategy.client.zzz is not an argument of LocalUpdate; leave it out; no argument can be set": [
        "+strategy.client.zzz=1"
    ],
    "strategy=fedavg: strategy.client must make": ["strategy.client._target_=builtins.dict"],
    "partitioner=distribution: partitioner.distribution_array.sigm is not an argument of lognormal_shares; try "
    "partitioner.distribution_array.sigma=2; its arguments are ": [
        "partitioner=distribution",
        "+partitioner.distribution_array.sigm=2",
    ],
    "hardware=workers: hardware.worker is not an argument of WorkerGrid; try hardware.workers=2; its arguments are ": [
        "hardware=workers",
        "+hardware.worker=2",
    ],
    "tracker=none: tracker.zzz is not an argument of NoTracker; leave it out; no argument can be set": [
        "+tracker.zzz=1"
    ],
    "strategy=fedper: the head may consist of": ["strategy=fedper", "strategy.client.head=[nope]"],
    "hardware=auto: hardware must make": ["hardware._target_=builtins.dict"],
    "dataset=digits: dataset must make": ["dataset._target_=builtins.dict"],
    "dataset=digits: dataset.zzz is not an argument of load; leave it out; no argument can be set": ["+dataset.zzz=1"],
    "dataset=digits: train holds labels from 0 to 9": ["dataset.declares.num_classes=3"],
    "dataset.path must be a folder": ["dataset=mnist", "dataset.path=/nope"],
    "federation.num_supernodes=1500 is more than": ["federation.num_supernodes=1500"],
}


@pytest.mark.parametrize(("said", "words"), BUILT.items(), ids=[" ".join(words) for words in BUILT.values()])
def test_an_error_of_a_constructor_is_a_line_that_names_the_option(compose, said, words):
    from fedresearch.experiment.experiment import Experiment
    from fedresearch.experiment.preparation import prepare

    with pytest.raises(InputError) as raised:
        prepare(Experiment(*compose("tracker=none", *words)))
    assert raised.value.args[0].startswith(said)
    assert not any("\n" in line for line in raised.value.args)
