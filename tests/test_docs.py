"""The documents: commands, files and code run as they are written, only shorter, and links lead somewhere."""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException

from fedresearch import main
from fedresearch.errors import InputError
from fedresearch.flower_app import command as app_command
from tests import warm

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
SHORTER = ["federation.num_rounds=1", "local.epochs=1"]
# Of these, commands that need nothing from elsewhere run; those of the others are composed or parsed.
RUN = ("README.md", *(f"docs/{name}.md" for name in ("getting-started", "extending", "hardware")))
FOREIGN = ("eval", "flower-superlink", "flower-supernode", "flwr", "git", "source", "wandb")  # not ours
HYDRAS = re.compile(r"--(help|resolve)|hydra[./].*|.*(\$\{tuned:|interval\().*")


def prose(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page):
    indented = re.findall(r"^    ((?:fedresearch|python|pip|\./scripts/).*)$", prose(PAGES[page]), flags=re.MULTILINE)
    for block in [*blocks(page, "bash"), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def files(page):
    """A file is a block whose path is a comment at its beginning; Hydra wants its own comment first."""
    for block in [*blocks(page, "python"), *blocks(page, "yaml")]:
        named = re.match(r"(?:# @package .*\n)?# ((?:my_conf/\w+/)?\w+\.(?:py|yaml))\n", block)
        if named:
            yield named[1], block


def of_ours(words):
    """Return the arguments of a command of fedresearch, or None."""
    for name in (["python", "-m", "fedresearch.main"], ["fedresearch"], ["./scripts/run"]):
        if words[: len(name)] == name:
            return words[len(name) :]
    return None


def place(page, folder):
    for path, content in files(page):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


# Code that is compiled once: it takes ten seconds.
CACHE = os.environ.get("FEDRESEARCH_CACHE", str(Path.home() / ".cache" / "fedresearch"))


def execute(folder, *arguments):
    env = {**os.environ, "HOME": str(folder), "FEDRESEARCH_CACHE": CACHE}
    if arguments[:2] == (sys.executable, "-m"):
        done = warm.python(*arguments[1:], cwd=folder, env=env)
    else:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def fedresearch(folder, *arguments):
    return execute(folder, sys.executable, "-m", "fedresearch.main", *arguments)


VERBS = ("report", "sweep", "tune", "compare", "reproduce", "app")
EVERY = {shlex.join(words): (page, words) for page in PAGES for words in commands(page)}
RUNNING = {
    shlex.join(arguments): (page, arguments)
    for page in RUN
    for arguments in map(of_ours, commands(page))
    if arguments and arguments[0] not in (*VERBS, "-sc") and not arguments[0].startswith("resume=")
}


def test_they_are_found():
    assert len(EVERY) >= 50
    assert len(RUNNING) >= 15
    assert [path for page in PAGES for path, _ in files(page)] == [
        "halfway.py",
        "my_conf/strategy/halfway.yaml",
        "fedcm.py",
        "private.py",
        "paces.py",
        "little_is_enough.py",
        "focal.py",
        "top.py",
        "evenings.py",
        "largest.py",
        "warmup.py",
        "cutout.py",
        "mine.py",
        "dealing.py",
        "my_conf/strategy/fedcm.yaml",
        "my_conf/strategy/private.yaml",
        "my_conf/strategy/paces.yaml",
        "my_conf/channel/little_is_enough.yaml",
        "my_conf/strategy/focal.yaml",
        "my_conf/metrics/top_k.yaml",
        "my_conf/availability/evenings.yaml",
        "my_conf/sampling/largest.yaml",
        "my_conf/schedule/warmup.yaml",
        "my_conf/dataset/svhn.yaml",
        "my_conf/transform/cutout.yaml",
        "my_conf/transform/centre.yaml",
        "my_conf/dataset/noise.yaml",
        "my_conf/model/net.yaml",
        "my_conf/partitioner/dealt_out.yaml",
        "my_conf/experiment/first.yaml",
        "sweep.yaml",
    ]


class Parsed(Exception):
    pass


@pytest.mark.parametrize("command", EVERY)
def test_commands_are_understood(command, compose, tmp_path, monkeypatch):
    page, words = EVERY[command]
    arguments = of_ours(words)
    if arguments is not None:
        understand(arguments, place(page, tmp_path), compose, monkeypatch)
    elif words[:2] == ["python", "-m"]:
        parse(importlib.import_module(words[2].replace("benchmark", "benchmark.__main__")), words[2:], monkeypatch)
    elif words[0].startswith("./scripts/"):
        assert os.access(ROOT / words[0], os.X_OK)
    elif words[:3] == ["pip", "install", "-e"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert re.fullmatch(r"\.\[(\w+)\]", words[3])[1] in project["optional-dependencies"]
    else:
        assert words[0] in FOREIGN


def understand(arguments, folder, compose, monkeypatch):
    if arguments[:2] == ["sweep", "status"]:
        assert len(arguments) == 3
    elif arguments[:2] == ["sweep", "preflight"]:
        understand(["-m", *arguments[2:]], folder, compose, monkeypatch)
    elif arguments and arguments[0] in VERBS:
        parse(main, ["fedresearch", *arguments], monkeypatch)
    elif arguments and arguments[0] != "-sc":
        monkeypatch.chdir(folder)
        words = [word for word in arguments if not HYDRAS.fullmatch(word) and not word.startswith("resume=")]
        own = folder / words[1] if words[:1] == ["--config-dir"] else None
        words = [word for word in words if "=" in word]
        words += [
            word for word in own_sweep(words) if word.partition("=")[0] not in [w.partition("=")[0] for w in words]
        ]
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]
        for job in jobs:
            try:
                compose(*job, config_dir=own)
                return
            except ConfigCompositionException:  # a key that this job's options do not have
                if job is jobs[-1]:
                    raise


def own_sweep(words):
    """Return the overrides of a preset that is a sweep of its own."""
    for word in words:
        preset = ROOT / "conf" / f"{word.replace('=', '/')}.yaml"
        if word.startswith(("experiment=", "tune=")) and preset.exists():
            sweeper = yaml.safe_load(preset.read_text()).get("hydra", {}).get("sweeper", {})
            yield from (f"{key}={value}" for key, value in sweeper.get("params", {}).items())


def parse(module, words, monkeypatch):
    """Let a command's own parser take the words, and stop there."""

    def parsing(original):
        def parse_and_stop(*given):
            original(*given)
            raise Parsed

        return parse_and_stop

    parser = argparse.ArgumentParser
    monkeypatch.setattr(app_command, "run", parsing(id))  # which is given what its parser took in
    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(parser, method, parsing(getattr(parser, method)))
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNING)
def test_commands_run(command, tmp_path):
    page, arguments = RUNNING[command]
    if "experiment=flower_tutorial" in arguments:  # its data come from the Hub
        arguments = [*arguments, "--cfg", "job"]
    elif not {"--help", "--cfg"} & set(arguments):
        arguments = [*arguments, *(SHORTER if "local.epochs=null" not in arguments else SHORTER[:1])]
        arguments += ["tracker=none"] if "--config-dir" in arguments else []
    fedresearch(place(page, tmp_path), *arguments)


@pytest.fixture
def documented(run, tmp_path, monkeypatch):
    """Return a function that runs an experiment with the options of pages, and returns the rows of its rounds."""
    monkeypatch.syspath_prepend(tmp_path)

    def documented_(*overrides):
        return run(*overrides, config_dir=tmp_path / "my_conf").rows

    return documented_


def test_the_strategies_do_what_they_say(documented, tmp_path):
    """README's is FedAvg's where it goes the whole way, up to one rounding, and FedCM is FedAvg with alpha = 1.

    FedCM's direction is the mean way of the clients over lr times their steps; so is its norm the update's over those.
    """
    for page in ("README.md", "docs/extending.md"):
        place(page, tmp_path)

    def rows(*overrides):
        words = [*overrides, "federation.num_rounds=2", "local.epochs=null", "local.steps=3", "optimizer.lr=0.2"]
        return documented(*words, "dtype=float64")

    fedavg, whole_way, same = (
        rows("strategy=fedavg"),
        rows("strategy=halfway", "strategy.server.share=1"),
        rows("strategy=fedcm", "strategy.server.alpha=1"),
    )
    assert [row["eval/loss"] for row in whole_way] == pytest.approx([row["eval/loss"] for row in fedavg], rel=1e-9)
    assert [row["model/sha256"] for row in same] == [row["model/sha256"] for row in fedavg]
    half, mixed = rows("strategy=halfway"), rows("strategy=fedcm", "strategy.server.alpha=0.5")
    assert half[0]["update/norm"] == pytest.approx(fedavg[0]["update/norm"] / 2, rel=1e-9)
    for row in (*same, *mixed):
        assert row["train/direction_norm"] == pytest.approx(row["update/norm"] / (0.2 * 3), rel=1e-9)
    assert mixed[0]["update/norm"] != pytest.approx(fedavg[0]["update/norm"], rel=1e-2)


def test_focal_loss_with_gamma_0_is_cross_entropy_and_away_clients_are_not_sampled(documented, tmp_path):
    place("docs/extending.md", tmp_path)

    def rows(*overrides):
        return documented(*overrides, "federation.num_rounds=3", "local.epochs=1")

    plain, focal = rows("strategy=fedavg"), rows("strategy=focal")
    assert all(less["train/loss"] < row["train/loss"] for row, less in zip(plain, focal, strict=True))
    same = rows("strategy=focal", "strategy.client.gamma=0")  # (1 - p)^0 = 1
    assert [row["model/sha256"] for row in plain] == [row["model/sha256"] for row in same]
    sampled = [row["clients/sampled"] for row in rows("availability=evenings", "federation.fraction_train=1")]
    assert sampled == [3, 3, 4]  # partitions 1, 4, 7; then 2, 5, 8; then 0, 3, 6, 9


def test_cutting_nothing_out_is_no_transform(documented, tmp_path):
    place("docs/extending.md", tmp_path)

    def model(*overrides):
        return documented(*overrides, *SHORTER)[-1]["model/sha256"]

    assert model("transform=[cutout]", "transform.cutout.size=0") == model()
    assert model("transform=[cutout]") != model()
    assert model("transform=[centre]") != model()


def test_cutout_sets_a_square_to_zero(tmp_path):
    code: dict[str, Any] = {}
    exec(dict(files("docs/extending.md"))["cutout.py"], code)
    drawn = {"centre": torch.tensor([[0.5, 0.25], [0.0, 1.0]])}  # at pixels (4, 2) and (0, 8)
    cut = code["Cutout"](3).apply(torch.ones(2, 1, 8, 8, dtype=torch.uint8), drawn)
    expected = torch.ones(2, 8, 8, dtype=torch.uint8)
    expected[0, 3:6, 1:4] = 0
    expected[1, :2, 7:] = 0
    assert torch.equal(cut[:, 0], expected)


@pytest.mark.slow
def test_the_metric_with_k_1_is_the_accuracy_and_decides_the_best_round(tmp_path):
    place("docs/extending.md", tmp_path)
    words = ["metrics=[accuracy,top_k]", "metrics.top_k.k=1", "checkpoint.best=clients/top_k_worst"]
    printed = fedresearch(tmp_path, "--config-dir", "my_conf", *words, *SHORTER)
    directory = Path(printed.split()[-1])
    *_, row = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    columns = [name for name in row if "accuracy" in name]
    assert [row[name.replace("accuracy", "top_k")] for name in columns] == [row[name] for name in columns] != []
    assert (directory / "best.safetensors").exists()
    assert json.loads((directory / "run.json").read_text())["columns"]["eval/top_k"]["direction"] == "up"


def test_the_lines_of_the_examples_are_counted_right():
    written = {Path(name).name: text for page in ("README.md", "docs/extending.md") for name, text in files(page)}
    counted = 0
    for _, file, *numbers in re.findall(
        r"^\| (.*) \| (.*) \| (\d+) \| (\d+) \|", PAGES["docs/extending.md"], re.MULTILINE
    ):
        names = re.findall(r"`(\w+)`", file)
        if "mine" in names:  # one file with two examples
            continue
        for suffix, number in zip(("py", "yaml"), numbers, strict=True):
            texts = [written.get(f"{name}.{suffix}", "") for name in names]
            lines = [line for text in texts for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
            assert len(lines) == int(number), (file, suffix)
            counted += 1
    assert counted >= 20


def test_another_image_set_of_the_hub_composes(tmp_path, compose):
    place("docs/extending.md", tmp_path)
    config, _ = compose("dataset=svhn", "model=lenet", config_dir=tmp_path / "my_conf")
    assert config.dataset["name"] == "ufldl-stanford/svhn"
    assert config.partitioner["partition_by"] == "label"


@pytest.mark.slow
def test_the_wandb_sweep_types_overrides(tmp_path):
    """As W&B's agent does with what the server chose."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((place("docs/tracking.md", tmp_path) / "sweep.yaml").read_text())
    chosen = {"optimizer.lr": {"value": 0.25}, "strategy": {"value": "scaffold"}}
    assert chosen.keys() == sweep["parameters"].keys()
    assert f"`{sweep['metric']['name']}`" in PAGES["docs/columns.md"]
    values = {**create_sweep_command_args({"args": chosen}), "env": ["env"], "program": [sweep["program"]]}
    words = [word for part in sweep["command"] for word in values.get(part.strip("${}"), [part])]
    assert words[1] == "python"
    printed = execute(tmp_path, "env", sys.executable, *words[2:], "--cfg", "job")
    assert yaml.safe_load(printed)["optimizer"]["lr"] == 0.25
    assert "SCAFFOLD" in printed.upper()


@pytest.mark.slow
def test_the_code_runs_on_a_finished_run(tmp_path):
    fedresearch(tmp_path, *SHORTER, "tracker=none", "hydra.run.dir=outputs/DATE_TIME")
    (code,) = blocks("docs/run-directory.md", "python")
    code += "print(len(curve), sum(p.numel() for p in model.parameters()), len(table))"
    assert execute(tmp_path, sys.executable, "-c", code).split() == ["2", str(64 * 200 + 200 + 200 * 10 + 10), "1"]


def test_the_message_is_the_one_that_is_printed(compose):
    (message,) = blocks("docs/getting-started.md", "text")
    with pytest.raises(InputError) as refused:
        compose("federation.fraction_train=2")
    assert f"error: {refused.value}\n" == message


def test_every_option_is_named():
    for path in (ROOT / "conf").glob("*/[!_]*.yaml"):
        if path.parent.name != "partitioner":
            assert re.search(rf"\b{path.stem}\b", PAGES["docs/configuration.md"]), path


def test_readmes_seconds_are_those_of_the_benchmark():
    seconds = re.findall(r"([\d.]+) s\b", PAGES["README.md"].partition("## Speed")[2])
    assert 0 < len(seconds) == len(set(seconds) & {*re.findall(r"[\d.]+", PAGES["docs/benchmark.md"])})


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def anchors(text):
    """Return the anchors of a page's headings, as a forge names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        if re.match("https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_in_the_overview_and_on_the_site():
    nav = (ROOT / ".zensical.toml").read_text()
    for page in PAGES:
        name = page.removeprefix("docs/")
        if name != page and name != "README.md":
            assert f'"{name}"' in nav
            assert name == "mcmahan2017_table1_2nn.md" or f"]({name})" in PAGES["docs/README.md"]


def test_the_site_builds_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / ".zensical.toml", tmp_path)
    build = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--config-file", ".zensical.toml"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "build/site/index.html").exists()


def test_the_walks_lead_through_the_code():
    """Each `room/file.py:name` of the architecture is there."""
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGES["docs/architecture.md"])
    assert len(places) >= 50
    for path, name in places:
        found = ast.parse((ROOT / "fedresearch" / path).read_text())
        for part in name.split("."):
            named = [n for n in ast.walk(found) if part in (getattr(n, "name", None), getattr(n, "id", None))]
            assert named, f"{path}:{name}"
            found = named[0]


def test_the_floors_are_those_of_the_import_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    (picture,) = blocks("docs/architecture.md", "text")
    floors = [re.split(r" {4,}", line.strip())[0] for line in picture.splitlines()]
    assert [floor for floor in floors if floor != "|"] == contract["layers"]


def test_every_room_is_described():
    rooms = {path.stem for path in (ROOT / "fedresearch").iterdir() if path.stem.isidentifier()} - {"__init__"}
    rooms -= {"__pycache__", "conf"}
    table = PAGES["docs/architecture.md"].partition("## Rooms")[2].partition("## One round")[0]
    assert rooms == set(re.findall(r"`(\w+)`(?=[^|\n]*\|.*\|$)", table, re.MULTILINE)) - {"Grid"}


@pytest.mark.slow
def test_run_works_from_any_folder(tmp_path):
    assert "Examples:" in execute(tmp_path, ROOT / "scripts" / "run", "--help")
