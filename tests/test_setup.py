"""The environment that the scripts make: once, for one checkout, and never another's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Makes environments of itself alone, and notes what pip would install.
PYTHON = """#!/usr/bin/env bash
case "$2" in
  venv) mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python" ;;
  pip) echo "$0" "${@:3}" >>"$NOTES" ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """Return a function that sets a checkout up; it returns the exit code, what is printed, and what was installed."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "NOTES": str(tmp_path / "notes")}

    def set_up_(checkout):
        (tmp_path / "notes").write_text("")
        done = subprocess.run(["bash", checkout / "scripts" / "setup"], env=env, capture_output=True, text=True)
        return done.returncode, done.stderr, (tmp_path / "notes").read_text()

    return set_up_


@pytest.fixture
def make(tmp_path, set_up):
    """Return a function that makes a checkout, set up or not."""

    def make_(name, *, ready):
        checkout = tmp_path / name
        (checkout / "scripts").mkdir(parents=True)
        for path in ("pyproject.toml", "scripts/setup"):
            shutil.copy(ROOT / path, checkout / path)
        if ready:
            code, printed, installed = set_up(checkout)
            assert code == 0, printed
            words = "install --quiet --disable-pip-version-check -e"
            assert installed == f"{checkout}/.venv/bin/python {words} {checkout}[test]\n"
        return checkout

    return make_


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_environment_is_made_once(make, set_up, tmp_path):
    checkout = make("my checkout", ready=True)
    assert set_up(checkout) == (0, "", "")
    (tmp_path / "link").symlink_to(checkout)
    assert set_up(tmp_path / "link") == (0, "", "")  # the same checkout
    (checkout / "pyproject.toml").write_text("changed")
    assert set_up(checkout)[2]


@pytest.mark.parametrize("part", [".venv", ".venv/bin", ".venv/lib"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_linked_environment_is_refused_and_left_as_it_is(make, set_up, part, exists):
    one, other = make("one", ready=exists), make("other", ready=False)
    (other / part).parent.mkdir(exist_ok=True)
    (other / part).symlink_to(one / part)
    before = content(one)
    assert set_up(other) == (
        1,
        f"scripts/setup: {other / part} is a link to {one / part}, and an environment belongs to one checkout; "
        f"try rm {other / part}\n",
        "",
    )
    assert content(one) == before


def test_the_environment_of_another_checkout_is_refused(make, set_up):
    one, other = make("one", ready=True), make("other", ready=False)
    shutil.copytree(one / ".venv", other / ".venv")
    code, printed, installed = set_up(other)
    assert (code, installed) == (1, "")
    assert printed == (
        f"scripts/setup: {other}/.venv belongs to the checkout {one}; "
        f"try rm -r {other}/.venv, for an environment of this one\n"
    )
    shutil.rmtree(other / ".venv")
    assert set_up(other)[0] == 0
