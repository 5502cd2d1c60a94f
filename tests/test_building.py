"""Every mistake of a plug-in gives one line that names the option."""

import pytest
from torch.nn import Module

from fedresearch.errors import InputError
from fedresearch.experiment.builder import Builder

PLUGIN = """
import math, sys

number = 3

def none(**_): return None
def text(**_): return "text"
def a_dict(**_): return {}
def exits(**_): sys.exit(3)
def missing(**_): open("nowhere.csv")
def attribute(**_): math.nope
def key(**_): {}["x"]
def fails(**_): assert False
def refuses(**_): raise ValueError("too\\nlarge")
def bare(): return None
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The user's module `plug`, and `half`, which imports a missing module."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plug.py").write_text(PLUGIN)
    (tmp_path / "half.py").write_text("import nomod")
    yield tmp_path / "plug.py"
    import sys

    for name in ("plug", "half"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("plug.none", "model must make a Module (torch), got None"),
        ("plug.text", "model must make a Module (torch), got a str"),
        ("plug.a_dict", "model must make a Module (torch), got a dict"),
        ("plug.exits", "ended the process (exit code 3); it must return"),
        ("plug.missing", "No such file or directory: nowhere.csv"),
        (
            "plug.attribute",
            "AttributeError(\"module 'math' has no attribute 'nope'\") in {plug}, line 11; FEDRESEARCH_",
        ),
        ("plug.key", "KeyError('x') in {plug}, line 12; FEDRESEARCH_FULL_ERROR=1 shows the traceback"),
        ("plug.fails", "AssertionError() in {plug}, line 13"),
        ("plug.refuses", "model=mine: too large"),
        ("plug.number", "Expected a callable target, got '3' of type 'int'"),
        ("plug.nonne", "plug ({plug}) has no nonne; did you mean none?"),
        ("half.x", "half cannot be imported: ModuleNotFoundError: No module named 'nomod'"),
        ("nomod.x", "module nomod does not exist; run from the folder that holds it, or add that to PYTHONPATH"),
        ("math.pi", "Expected a callable target"),
    ],
)
def test_a_mistake_of_a_plugin_is_one_line_with_the_option(plugin, target, line):
    with pytest.raises(InputError) as raised:
        Builder({"model": "mine"}).build("model", {"_target_": target}, Module)
    (reported,) = raised.value.args
    assert reported.startswith("model=mine")
    assert line.format(plug=plugin) in reported
    assert "\n" not in reported


def test_a_callable_without_an_argument_that_the_run_gives_is_refused_with_all_of_them(plugin):
    with pytest.raises(InputError, match=r"^model=mine: bare must have the arguments that the run gives: x, y$"):
        Builder({"model": "mine"}).build("model", {"_target_": "plug.bare"}, Module, x=1, y=2)


def test_the_result_of_a_call_has_its_type_checked_too(plugin):
    builder = Builder({"schedule": "mine"})
    make = builder.partial("schedule", {"_target_": "plug.none"})
    with pytest.raises(InputError, match="schedule=mine: schedule must make a float"):
        builder.build("schedule", make, float)
