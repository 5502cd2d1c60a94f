"""The jobs of a sweep: composed, checked and listed before any starts, in this process and without a run."""

from dataclasses import asdict, replace

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from fedresearch import config
from fedresearch.config.help_text import CONF
from fedresearch.errors import InputError
from fedresearch.study.sweep.compose import compose_jobs
from fedresearch.study.sweep.job import is_settled
from fedresearch.study.sweep.status import job_names
from fedresearch.study.sweep.sweeper import ComposedJobs
from tests.records import make

SMALL = ["model=logistic", "tracker=none"]


@pytest.fixture
def compose(tmp_path):
    """Return a function that composes the jobs of what is typed after ``-m``."""

    def compose_(*words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config.register()
            loader = GlobalHydra.instance().config_loader()
            typed = [*SMALL, *words, *([] if "hydra.sweep.dir" in " ".join(words) else [f"hydra.sweep.dir={tmp_path}"])]
            return compose_jobs(loader.load_configuration("config", typed, RunMode.MULTIRUN))

    return compose_


def overrides(jobs):
    return [" ".join(word for word in job.overrides if word not in SMALL) for job in jobs]


MU = "strategy.server.proximal_mu"


def test_a_value_applies_to_the_jobs_whose_options_have_its_key(compose, capsys):
    jobs = compose("strategy=fedavg,fedprox,scaffold", f"{MU}=0.01,0.1")
    expected = ["strategy=fedavg", *(f"strategy=fedprox {MU}={mu}" for mu in (0.01, 0.1)), "strategy=scaffold"]
    assert overrides(jobs) == expected
    assert [job.config.strategy["server"].get("proximal_mu") for job in jobs] == [None, 0.01, 0.1, None]
    first, *listed = capsys.readouterr().out.splitlines()
    assert first == f"{MU} applies to 2 of 4 jobs: the others' options do not have it"
    assert [line.strip() for line in listed] == expected


def test_keys_of_several_groups_apply_where_they_exist(compose):
    jobs = compose(
        f"{MU}=choice(0.5)", "strategy=fedavg,fedprox", "optimizer=sgd,adam", "optimizer.momentum=0,0.9", "seed=0,1"
    )
    assert len(jobs) == 2 * (2 + 1) * 2  # Adam does not have momentum
    for job in jobs:
        proximal, momentum = job.choices["strategy"] == "fedprox", job.choices["optimizer"] == "sgd"
        assert (MU in " ".join(job.overrides)) == proximal
        assert ("momentum" in " ".join(job.overrides)) == momentum


def test_a_key_in_a_section_that_only_one_option_has(compose):
    jobs = compose(
        "partitioner=iid,distribution", "partitioner.distribution_array.sigma=1,2", "federation.num_supernodes=10"
    )
    assert [job.config.partitioner.get("distribution_array", {}).get("sigma") for job in jobs] == [None, 1, 2]


def test_a_key_that_no_job_has_is_refused(compose):
    with pytest.raises(InputError) as refused:
        compose("strategy=fedavg,scaffold", f"{MU}=0.01,0.1", "federation.num_round=choice(3)")
    assert sorted(line.split(";")[0] for line in refused.value.args) == [
        f"job strategy=fedavg {MU}=0.01 and 3 more: unknown key federation.num_round",
        f"job strategy=fedavg {MU}=0.01 and 3 more: unknown key {MU}",
    ]


def test_an_added_key_is_added_to_every_job(compose):
    with pytest.raises(InputError, match=r"job strategy=fedavg .* and 3 more: unknown key strategy\.server\.nope"):
        compose("strategy=fedavg,fedprox", "strategy.server.nope.more=1,2")
    jobs = compose("strategy=fedavg,fedprox", f"++{MU}=0.1")
    assert [job.config.strategy["server"]["proximal_mu"] for job in jobs] == [0.1, 0.1]


def test_jobs_are_numbered_as_they_run(compose):
    jobs = compose("strategy=fedavg,fedprox", f"{MU}=0.01,0.1", "hydra.sweep.subdir=${hydra.job.num}")
    assert [job.directory for job in jobs] == ["0", "1", "2"]


def test_jobs_with_the_same_numbers_are_one(compose, capsys):
    jobs = compose("hardware=cpu,workers", "seed=0,1")
    assert overrides(jobs) == ["hardware=cpu seed=0", "hardware=cpu seed=1"]
    assert "4 jobs, but only 2 with different numbers" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["strategy", "dataset", "experiment"])
def test_globs_leave_out_files_that_begin_with_an_underscore(compose, group):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fedresearch.study.sweep.compose import _refuse_impossible_numbers

    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([f"{group}=glob(*)"])
        _refuse_impossible_numbers(parsed)
        (batch,) = BasicSweeper.split_arguments(parsed, None)
    options = sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))
    assert sorted(word for (word,) in batch) == [f"{group}={option}" for option in options]


REFUSED = {
    "seed=range(0)": r"seed=range\(0\) has no values",
    "seed=range(5,1)": "has no values",
    "seed=range(0.5,0.1,0.1)": "has no values",
    "strategy=glob(nope*)": "has no values",
    "seed=glob(*)": "has no values",
    "seed=range(1,5,0)": "never ends",
    "seed=range(0,inf)": "never ends",
    "seed=range(nan)": "never ends",
    "seed=range(1000000)": "at most 10,000 jobs, got more; try fewer values of seed=range",
    "seed=range(0,1,1e-300)": "at most 10,000 jobs",
    f"seed=range({10**400})": "at most 10,000 jobs",
    "seed=interval(0,3)": "leaves the choice to a sweeper such as hydra/sweeper=optuna; try seed=VALUE,VALUE",
}


@pytest.mark.parametrize(("word", "said"), REFUSED.items(), ids=[word[:30] for word in REFUSED])
def test_zero_or_too_many_jobs_are_refused_before_any_is_composed(compose, word, said):
    with pytest.raises(InputError, match=said):
        compose(word)


def test_the_product_of_all_values_counts(compose):
    with pytest.raises(InputError, match="at most 10,000 jobs, got more; try fewer values of seed=range"):
        compose("seed=range(200)", "optimizer.lr=range(0.01,1,0.01)")


@pytest.mark.parametrize("preset", ["li2022_fcube,li2020_fedprox_synthetic", "flower_tutorial,li2022_fcube"])
def test_presets_that_are_sweeps_cannot_be_swept(compose, preset):
    with pytest.raises(InputError, match=r"one of its options sets hydra.sweeper, .* type a command for each"):
        compose(f"experiment={preset}")


@pytest.mark.parametrize("subdir", ["same", "${optimizer.lr}"])
def test_several_jobs_in_one_directory_are_refused(compose, subdir):
    with pytest.raises(InputError, match=r"job seed=1: hydra.sweep.subdir=.* is the directory of another job too"):
        compose("seed=0,1", f"hydra.sweep.subdir={subdir}")


@pytest.mark.parametrize("subdir", ["../${seed}", "/tmp/${seed}", "", ".", "a/../../${seed}"])
def test_a_directory_outside_the_sweep_is_refused(compose, subdir):
    with pytest.raises(InputError, match=r"hydra.sweep.subdir must be a folder in the sweep's, got "):
        compose("seed=0,1", f"hydra.sweep.subdir={subdir}")


def test_hydra_runs_the_composed_jobs_in_batches(compose, monkeypatch):
    monkeypatch.setattr(ComposedJobs, "jobs", compose("seed=0,1,2"))
    batches = ComposedJobs.split_arguments([], 2)
    assert [[job[-1] for job in batch] for batch in batches] == [["seed=0", "seed=1"], ["seed=2"]]
    assert len(ComposedJobs.split_arguments([], None)) == 1


def test_an_interrupted_sweep_says_how_to_continue(monkeypatch):
    def interrupted(self, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ComposedJobs.__base__, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted; the same command continues the sweep"):
        ComposedJobs(max_batch_size=None).sweep([])


def test_a_job_that_does_not_compose_is_refused(compose):
    with pytest.raises(InputError, match="job strategy=nope: strategy=nope does not exist"):
        compose("strategy=fedavg,nope")


def test_an_error_of_the_only_job_does_not_name_the_job(compose):
    for words in (["seed=-1"], ["seed=choice(-1)", "strategy=fedavg"]):
        with pytest.raises(InputError, match=r"^seed must be an integer >= 0, got -1; try seed=0$"):
            compose(*words)


def test_a_sweep_of_one_job_has_a_short_name():
    assert job_names([["strategy=fedavg", "seed=0"]]) == ["the only job"]
    assert job_names([["a=1", "b=2"], ["a=1", "b=3"]]) == ["b=2", "b=3"]
    assert job_names([]) == []


@pytest.fixture
def leave_run(tmp_path):
    """Return a function that leaves the run of a job, resumed with other keys."""

    def leave_run_(job, status, num_rows, **changed):
        federation = replace(job.config.federation, **changed)
        ran = replace(job.config, federation=federation)
        sections = asdict(ran)
        make(
            tmp_path / job.directory,
            status=status,
            rows=[{}] * num_rows,
            record={"digest": config.digest(ran), "config": sections},
            choices=job.choices,
        )

    return leave_run_


MORE = "federation.num_rounds=30 (now 20)"


@pytest.mark.parametrize(
    ("status", "num_rows", "changed", "said"),
    [
        ("finished", 30, {"num_rounds": 30}, MORE),
        ("finished", 12, {"num_rounds": 30}, MORE),  # at the target
        ("interrupted", 25, {"num_rounds": 30}, MORE),
        ("interrupted", 20, {"num_rounds": 30}, None),
        ("interrupted", 8, {"num_rounds": 30}, None),
        ("finished", 15, {"num_rounds": 15}, None),
        ("diverged", 15, {"num_rounds": 15}, "federation.num_rounds=15 (now 20)"),
        ("finished", 20, {"max_failures": 2}, "federation.max_failures=2 (now 0)"),
        ("failed", 9, {"max_failures": 2}, None),
        ("finished", 20, {}, None),
    ],
)
def test_a_job_that_was_resumed_with_more_rounds_is_skipped_and_no_other(
    compose, leave_run, tmp_path, capsys, status, num_rows, changed, said
):
    first, second = compose("seed=0,1")
    leave_run(second, status, num_rows, **changed)
    jobs = compose("seed=0,1")
    assert [job.directory for job in jobs] == [first.directory, second.directory]
    expected = (
        f"warning: job seed=1: done with {said}, and skipped; to run it anew, move {tmp_path / second.directory} "
        "elsewhere\n"
    )
    out, error = capsys.readouterr()
    assert (out, error) == ("", expected if said else "")
    assert not is_settled(tmp_path / first.directory, first.config)
    done = bool(said) or not changed
    assert is_settled(tmp_path / second.directory, second.config) == done
    printed = f"{second.directory} is {status}{f' with {said}' if said else ''}: skipped\n"
    assert capsys.readouterr().out == printed * done


def test_a_job_whose_run_has_other_numbers_is_refused(compose, leave_run):
    first, _ = compose("seed=0,1")
    leave_run(first, "finished", 20, fraction_train=0.1)
    with pytest.raises(InputError, match="holds the run of another config; try another"):
        compose("seed=0,1")


def test_jobs_that_are_done_without_a_best_model_are_warned_of(compose, leave_run, capsys, tmp_path):
    jobs = compose("seed=0,1")
    for job in jobs:
        leave_run(job, "finished", 20)
    compose("seed=0,1", "checkpoint.best=clients/accuracy")
    assert capsys.readouterr().err == (
        "warning: job seed=0 and 1 more: done with checkpoint.best=null (now clients/accuracy), and skipped; "
        f"to run it anew, move {tmp_path / jobs[0].directory} elsewhere\n"
    )
