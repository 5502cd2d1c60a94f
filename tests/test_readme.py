"""README's commands, files and code run as they are written, only shorter."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from tests import warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (python -m fedresearch\.main ?.*)$", README, flags=re.MULTILINE)
# A file is a block that begins with its path as a comment, and ends where another begins or the indentation ends.
FILES = {
    path: textwrap.dedent(content)
    for path, content in re.findall(
        r"^    # ((?:my_conf/)?\w+(?:/\w+)?\.(?:py|yaml))\n(.*?)(?=^    # \w+[/.]\w|^    python|^\S)",
        README,
        flags=re.MULTILINE | re.DOTALL,
    )
}
SHORTER = ["federation.num_rounds=1", "local.epochs=1"]


@pytest.fixture
def folder(tmp_path):
    """A folder with README's files."""
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def execute(folder, *arguments):
    env = {**os.environ, "HOME": str(folder)}
    if arguments[:2] == (sys.executable, "-m"):
        done = warm.python(*arguments[1:], cwd=folder, env=env)
    else:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_they_are_found():
    assert len(COMMANDS) >= 9
    assert set(FILES) == {
        "mine.py",
        "clipping.py",
        "my_conf/strategy/clipped.yaml",
        "my_conf/schedule/warmup.yaml",
        "my_conf/dataset/svhn.yaml",
        "my_conf/dataset/noise.yaml",
        "my_conf/model/net.yaml",
        "my_conf/experiment/first.yaml",
        "sweep.yaml",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, folder):
    _, *arguments = command.partition("  #")[0].split()
    if "experiment=flower_tutorial" in arguments:  # its data come from the Hub
        arguments += ["--cfg", "job"]
    elif not {"--help", "--cfg"} & set(arguments):
        arguments += SHORTER if "local.epochs=null" not in arguments else SHORTER[:1]
    execute(folder, sys.executable, *arguments)


def test_the_strategy_does_what_it_says(folder):
    """An outsider's strategy: with nothing to clip and the whole way to the mean it is FedAvg, up to one rounding."""

    def losses(*overrides):
        arguments = ["--config-dir", "my_conf", *overrides, "federation.num_rounds=2", "local.epochs=1", "tracker=none"]
        arguments += ["dtype=float64", f"hydra.run.dir=outputs/{len(list(folder.glob('outputs/*')))}"]
        printed = execute(folder, sys.executable, "-m", "fedresearch.main", *arguments)
        rows = Path(printed.split()[-1], "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["eval/loss"] for row in rows]

    fedavg = losses("strategy=fedavg")
    same = losses("strategy=clipped", "strategy.server.share=1.0", "strategy.client.max_norm=1e9")
    assert same == pytest.approx(fedavg, rel=1e-9)
    for other in ("strategy.server.share=0.5", "strategy.client.max_norm=0.1"):
        assert losses("strategy=clipped", other) != pytest.approx(fedavg, rel=1e-2)


def test_another_image_set_of_the_hub_composes(folder):
    arguments = ["--config-dir", "my_conf", "dataset=svhn", "model=lenet", "--cfg", "job"]
    printed = execute(folder, sys.executable, "-m", "fedresearch.main", *arguments)
    assert "name: ufldl-stanford/svhn" in printed
    assert "label: label" in printed


def test_the_wandb_sweep_types_overrides(folder):
    """As W&B's agent does with what the server chose."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    chosen = {"optimizer.lr": {"value": 0.25}, "strategy": {"value": "scaffold"}}
    assert chosen.keys() == sweep["parameters"].keys()
    assert f"`{sweep['metric']['name']}`" in README
    values = {**create_sweep_command_args({"args": chosen}), "env": ["env"], "program": [sweep["program"]]}
    words = [word for part in sweep["command"] for word in values.get(part.strip("${}"), [part])]
    assert words[1] == "python"
    printed = execute(folder, "env", sys.executable, *words[2:], "--cfg", "job")
    assert yaml.safe_load(printed)["optimizer"]["lr"] == 0.25
    assert "SCAFFOLD" in printed.upper()


def test_the_code_runs_on_a_finished_run(folder):
    arguments = [*SHORTER, "tracker=none", "hydra.run.dir=outputs/DATE_TIME"]
    execute(folder, sys.executable, "-m", "fedresearch.main", *arguments)
    (code,) = re.findall(r"^    (import json, pathlib.*?)(?=^\S)", README, flags=re.MULTILINE | re.DOTALL)
    code = textwrap.dedent("    " + code) + "print(len(curve), sum(p.numel() for p in model.parameters()), len(table))"
    assert execute(folder, sys.executable, "-c", code).split() == ["1", str(64 * 200 + 200 + 200 * 10 + 10), "1"]


def test_every_option_is_named():
    for path in (ROOT / "conf").glob("*/[!_]*.yaml"):
        if path.parent.name != "partitioner":
            assert re.search(rf"\b{path.stem}\b", README), path


def test_run_works_from_any_folder(tmp_path):
    assert "Examples:" in execute(tmp_path, ROOT / "scripts" / "run", "--help")
