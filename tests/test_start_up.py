"""What a process has imported when it shows something: imports are most of the time until then."""

import subprocess
import sys

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from fedresearch import hydra_app, main
from tests.conftest import ROOT
from tests.test_main import environment

# Prints the names of the modules at the first row.
FIRST_ROW = """
import os, sys
from fedresearch import main
from fedresearch.runs.directory import RunDirectory

def log(run, row):
    print(*sys.modules, flush=True)
    os._exit(0)

RunDirectory.log = log
main.main()
"""
# What draws, compiles, reports, or makes other datasets and models.
UNUSED = {
    "matplotlib",
    "plotly",
    "ray",
    "scipy",
    "seaborn",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "torchvision",
    "wandb",
}

PARTITIONING = {"datasets", "flwr_datasets", "pandas", "pyarrow"}


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_the_first_row_and_less_for_a_known_partition(tmp_path, quick_compiler):
    env = environment(tmp_path, CXX=quick_compiler)

    def imported(*words):
        command = [sys.executable, "-c", FIRST_ROW, *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {*done.stdout.split()}

    first, second = imported(), imported("hardware=batched")
    assert not UNUSED & first
    assert first >= PARTITIONING
    assert not (UNUSED | PARTITIONING) & second


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["stratgy=fedavg"], 1), (["local.epochs=-1"], 1)])
def test_a_help_and_a_mistake_import_nothing_heavy(tmp_path, words, code):
    command = [sys.executable, "-X", "importtime", "-m", "fedresearch.main", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == code
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "fedresearch.main" in imported or "fedresearch.config" in imported
    assert not {*UNUSED, "datasets", "flwr", "numpy", "pandas", "torch"} & imported


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """Return the overrides of each config that Hydra has composed."""
    done = []
    compose = ConfigLoaderImpl._load_configuration_impl

    def counted(*words, **more):
        done.append(words)
        return compose(*words, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    monkeypatch.chdir(tmp_path)
    return done


@pytest.mark.parametrize("word", ["strategy=fedavgg", "local.epochs=-1", "model.nope=1", "seed=0,1"])
def test_a_mistake_is_composed_once(composed, monkeypatch, capsys, word):
    monkeypatch.setattr(sys, "argv", ["main", word])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err.startswith("error: ")
    assert len(composed) == 1


def test_a_sweep_and_each_of_its_jobs_are_composed_once(composed, monkeypatch):
    runs = []
    monkeypatch.setattr(hydra_app, "_import_run_experiment", lambda: runs.append)
    monkeypatch.setattr(sys, "argv", ["main", "-m", "seed=3,4", "tracker=none"])
    main.main()
    assert [run.config.seed for run in runs] == [3, 4]
    assert [run.overrides for run in runs] == [["seed=3", "tracker=none"], ["seed=4", "tracker=none"]]
    assert len(composed) == 3


def test_flower_datasets_plots_are_imported_where_they_are_used():
    used = "from flwr_datasets.visualization import plot_label_distributions as plot; print('seaborn' in sys.modules)"
    code = f"""
import sys
from fedresearch.data.partition import import_flower_datasets
import_flower_datasets()
import flwr_datasets.partitioner
print('seaborn' in sys.modules)
{used}
print(flwr_datasets.visualization.plot_label_distributions is plot)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "True"], done.stderr
