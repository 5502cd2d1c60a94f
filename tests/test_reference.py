"""The pages that are made from code and config are as they would be made now."""

import pytest
import yaml

from scripts import reference


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: path.name)
def test_the_committed_page_is_what_would_be_written(path):
    assert path.read_text() == reference.pages()[path], f"{path.name} is old; run {reference.COMMAND}"


def test_keys_come_with_their_values_as_written_and_the_comment_beside_or_above():
    text = """\
a: 1.0e-5 # rate
# in two
# lines
b: [1, 2]
c: # a section
  d: ${a} # follows
  e: {f: "x # y"}
  _target_: here.it_is
"""
    assert [*reference.keys_of(text, yaml.compose(text), "of.")] == [
        ("of.a", "1.0e-5", "rate"),
        ("of.b", "[1, 2]", "in two lines"),
        ("of.c", "", "a section"),
        ("of.c.d", "${a}", "follows"),
        ("of.c.e.f", '"x # y"', ""),
        ("of.c._target_", "here.it_is", "what is built"),
    ]


def test_every_option_has_a_section():
    page = reference.config_page()
    for path in reference.CONF.glob("*/[!_]*.yaml"):
        assert f"### `{path.parent.name}={path.stem}`" in page
