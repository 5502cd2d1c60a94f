"""What stands around the code: each dependency has its reason, links lead somewhere, and the checks can be started."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_each_dependency_has_its_reason():
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0]
        assert name == "fedresearch" or re.search(rf"(?<![\w-]){name}(?![\w-])", reasons), f"{name} has no reason"


def test_the_workflow_runs_the_checks_on_each_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    job = workflow["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert pythons == [f"3.{minor}" for minor in range(int(low), int(high))]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["./scripts/test"]
    assert os.access(ROOT / commands[0], os.X_OK)
    assert "secrets" not in str(workflow)


def test_the_hooks_run_the_programs_of_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = (ROOT / "scripts" / "test").read_text()
    assert [repository["repo"] for repository in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert f"$bin/{Path(hook['entry'].split()[0]).name}" in checks


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.md")), ids=lambda path: path.name)
def test_issue_templates_say_what_they_are_for(path):
    if path.parent.name == "ISSUE_TEMPLATE":
        _, head, body = path.read_text().split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(head).keys()
        assert body.strip()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/columns.md", "docs/benchmark.md", "docs/dependencies.md"])
def test_links_and_paths_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\(([^):#]+)", text)]
    paths = [
        ROOT / path
        for path in re.findall(r"`((?:fedresearch|tests|scripts|conf)/[\w/.]+?)/?`", text)
        if "NAME" not in path
    ]
    for path in [*links, *paths]:
        assert path.exists(), path
