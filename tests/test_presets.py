"""Presets of published experiments: short files, sources, the papers' grids and published numbers."""

import csv
import math
import os
import re
from dataclasses import asdict
from functools import cache
from itertools import product

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from fedresearch import config
from fedresearch.config.help_text import CONF
from fedresearch.experiment.experiment import Experiment
from fedresearch.runs.record import read_rows
from fedresearch.study.sweep.compose import compose_jobs
from tests import warm
from tests.conftest import LONG, ROOT

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("[!_]*.yaml"))
PUBLISHED = sorted((ROOT / "fedresearch" / "study" / "report" / "published").glob("*.csv"))
NIID_BENCH = {("fedavg",), ("fedprox",), ("scaffold",), ("fednova",)}
# Of the sweep's seeds, which are compared as they are written, jobs are composed of the last.
SEEDS, SEED = "0,1,2", 2
# The grid of each paper's table or figure: keys to the combinations of their values.
GRIDS = {
    "mcmahan2017_table1_2nn": {
        "partitioner": {("iid",), ("pathological_mcmahan",)},
        "federation.fraction_train": {(0.01,), (0.1,), (0.2,)},
    },
    "mcmahan2017_table2_cnn": {
        "partitioner": {("iid",), ("pathological_mcmahan",)},
        "local.epochs local.batch_size": {
            *[(1, 0)],  # FedSGD
            *[(5, 0), (1, 50), (20, 0), (1, 10), (5, 50), (20, 50), (5, 10), (20, 10)],
        },
    },
    "li2020_fedprox_synthetic": {
        "dataset.alpha dataset.beta dataset.iid": {(0, 0, False), (0.5, 0.5, False), (1, 1, False), (0, 0, True)},
        "strategy.server.proximal_mu": {(0,), (1,)},
    },
    "li2022_niid_bench_mnist": {
        "partitioner partitioner.num_classes_per_partition": {
            ("iid", None),
            ("dirichlet", None),
            *[("pathological", 1), ("pathological", 2), ("pathological", 3)],
        },
        "strategy": NIID_BENCH,
    },
    "li2022_fcube": {
        "partitioner": {("natural_id",), ("iid",)},
        "strategy": NIID_BENCH,
        "dataset.seed": {(SEED,)},
    },
    "hsu2019_dirichlet_momentum": {
        "partitioner.alpha": {(100,), (10,), (1,), (0.5,), (0.2,), (0.1,), (0.05,)},
        "strategy strategy.server.server_momentum": {("fedavgm", 0), ("fedavgm", 0.9)},
    },
    "reddi2021_server_optimizers": {
        "strategy": {("fedavg",), ("fedavgm",), ("fedadagrad_reddi",), ("fedadam_reddi",), ("fedyogi_reddi",)}
    },
    "karimireddy2020_epochs": {
        "partitioner.strictness": {(1,), (0,)},
        "local.epochs": {(1,), (5,), (10,), (20,)},
        "strategy strategy.server.proximal_mu": {("fedavg", None), ("fedprox", 1), ("scaffold", None)},
    },
}
SEVERAL_SEEDS = ("mcmahan2017_table1_2nn", "li2022_niid_bench_mnist", "li2022_fcube")


@cache
def jobs(preset):
    """Return the jobs of a preset's sweep, as ``experiment=PRESET`` composes and checks them, of one seed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config.register()
        loader = GlobalHydra.instance().config_loader()
        words = [f"experiment={preset}", *([f"seed={SEED}"] if preset in SEVERAL_SEEDS else [])]
        sweep = loader.load_configuration("config", words, RunMode.MULTIRUN)
        assert sweep.hydra.sweeper["params"].get("seed") == (SEEDS if preset in SEVERAL_SEEDS else None)
        assert sweep.hydra.mode == RunMode.MULTIRUN
        assert sweep.hydra.sweep.dir  # it depends on the sweep's overrides, and is resolved once, before a job needs it
        return compose_jobs(sweep)


def values(job, keys):
    """Return the values of keys in a job, options for groups' names; None where the job does not have the key."""
    found = []
    for key in keys:
        node = asdict(job.config)
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        found.append(job.choices.get(key, node))
    return tuple(found)


def test_every_preset_of_a_paper_has_its_grid_here():
    assert {*GRIDS, "flower_tutorial"} == {*PRESETS}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_short_and_name_their_source(preset):
    lines = (CONF / "experiment" / f"{preset}.yaml").read_text().splitlines()
    assert len(lines) < 15
    assert max(map(len, lines)) <= 120
    author, year = re.match(r"([a-z]+)(\d{4})?", preset).groups()
    if year:  # otherwise the preset is not from a paper
        assert re.match(
            rf"# {author} et al\. {year}, arXiv:\d{{4}}\.\d{{5}}, (Table|Figure) \d", lines[2], re.IGNORECASE
        )


@pytest.mark.slow
@pytest.mark.parametrize("preset", GRIDS)
def test_presets_compose_into_the_papers_grid(preset):
    axes = GRIDS[preset]
    expected = {sum(cell, ()) for cell in product(*axes.values())}
    keys = " ".join(axes).split()
    assert {values(job, keys) for job in jobs(preset)} == expected
    assert len(jobs(preset)) == math.prod(map(len, axes.values()))
    parts = ("dataset", "model", "strategy")  # many jobs share these
    jobs_by_parts = {str([asdict(job.config)[part] for part in parts]): job for job in jobs(preset)}
    for job in jobs_by_parts.values():
        experiment = Experiment(job.config, job.choices)
        assert experiment.model
        assert experiment.strategy
        assert experiment.update


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_numbers_belong_to_cells_of_their_preset(path):
    with path.open() as file:
        rows = [*csv.DictReader(file)]
    keys = [*rows[0]][: [*rows[0]].index("measure")]
    cells = {tuple("" if value is None else str(value) for value in values(job, keys)) for job in jobs(path.stem)}
    assert {tuple(row[key] for key in keys) for row in rows} <= cells


@pytest.mark.slow
def test_one_job_of_a_preset_is_reproduced_and_resumed(tmp_path):
    """Only that job and not the whole sweep, although its preset is a sweep."""

    def run(module, *arguments):
        done = warm.python(
            "-m",
            "fedresearch.main",
            *([] if module == "main" else [module]),
            *arguments,
            cwd=tmp_path,
            env={**os.environ, "WARM_RERUN": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    short = ["strategy=fedavg", "partitioner=iid", "seed=0", "federation.num_rounds=2", "tracker=none"]
    run("main", "experiment=li2022_fcube", *short, "hydra.sweep.dir=sweep")
    (job,) = [path.parent for path in tmp_path.glob("sweep/*/run.json")]
    assert "identical through round 2" in run("reproduce", str(job), "--out", "again")
    run("main", f"resume={job}", "federation.num_rounds=3")
    assert [row["round"] for row in read_rows(job)] == [0, 1, 2, 3]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_fcube_is_as_accurate_as_published(run):
    """Li et al. 2022, arXiv:2102.02079, Table 3: 99.8 +- 0.2 %."""
    cell = ["experiment=li2022_fcube", "strategy=fedavg", "partitioner=natural_id"]
    cheap = ["hardware=batched", "federation.evaluate_every=50"]
    accuracies = [run(*cell, *cheap, f"seed={seed}").rows[-1]["eval/accuracy"] for seed in range(3 if LONG else 1)]
    assert np.mean(accuracies) >= 0.993


@pytest.mark.slow
def test_fedprox_calms_the_loss(run):
    """Li et al. 2020, arXiv:1812.06127, Figure 2: on synthetic(0, 0) FedAvg's loss jumps, and FedProx's does not."""
    cell = ["experiment=li2020_fedprox_synthetic", "dataset={alpha: 0, beta: 0}"]
    cheap = ["dataset.seed=1", "federation.num_rounds=40"]  # a third of the default seed's samples
    jitters = []
    for mu in (0, 1):
        rows = run(*cell, *cheap, f"strategy.server.proximal_mu={mu}").rows
        jitters.append(np.abs(np.diff([row["eval/loss"] for row in rows[-21:]])).mean())
    assert jitters[0] >= 2 * jitters[1]
