"""README's commands run as they are written, only shorter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    python -m fedresearch\.main ?(.*)$", README, flags=re.MULTILINE)
# What makes a run short, where it is one; the tutorial's data come from the Hub.
SHORTER = ["federation.num_rounds=1", "local.epochs=1"]


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path):
    arguments = command.partition("  #")[0].split()
    if "experiment=flower_tutorial" in arguments:
        arguments += ["--cfg", "job"]
    elif not {"--help", "--cfg"} & set(arguments):
        arguments += SHORTER if "local.epochs=null" not in arguments else ["federation.num_rounds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "fedresearch.main", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_option_and_number_is_named():
    for path in (ROOT / "conf").glob("*/[!_]*.yaml"):
        if path.parent.name != "partitioner":
            assert re.search(rf"\b{path.stem}\b", README), path


def test_run_works_from_any_folder(tmp_path):
    done = subprocess.run([ROOT / "scripts" / "run", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
