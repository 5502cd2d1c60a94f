"""What makes Hydra quicker changes no result: OmegaConf itself, which YAML 1.1 and PyYAML define, is the reference."""

import copy
import io

import pytest
import yaml
from omegaconf import OmegaConf, _utils

from fedresearch.config.quicker_hydra import _Loader, _OmegaConfLoader, quicken
from tests.conftest import ROOT

quicken()
ODD = "{a: 1e-3, b: 1_000, c: 2026-11-27, d: off, e: 'x: y', f: [~, .inf, 0x10], g: &here {h: 1}, i: *here, 7: é}"


def test_yaml_has_the_content_that_omegaconf_loads():
    assert _utils.get_yaml_loader() is _Loader
    for text in (ODD, "", *(path.read_text() for path in ROOT.glob("conf/**/*.yaml"))):
        expected = repr(yaml.load(text, Loader=_OmegaConfLoader))
        assert repr(yaml.load(text, Loader=_Loader)) == repr(yaml.load(io.StringIO(text), Loader=_Loader)) == expected


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: [1", "a: b: c", "\ta: 1", "a: !unknown 1"])
def test_invalid_yaml_has_the_error_of_omegaconf_that_names_the_file(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    messages = []
    for loader in (_Loader, _OmegaConfLoader):
        with pytest.raises(yaml.YAMLError) as of_text:
            yaml.load(text, loader)
        with path.open() as file, pytest.raises(yaml.YAMLError, match=str(path)) as of_file:
            yaml.load(file, loader)
        messages.append((str(of_text.value), str(of_file.value)))
    assert messages[0] == messages[1]


def test_what_is_made_of_the_same_text_is_separate():
    one, other = OmegaConf.create("a: {b: [1]}"), OmegaConf.create("a: {b: [1]}")
    one.a.b.append(2)
    copied = copy.deepcopy(one)
    OmegaConf.set_readonly(copied.a, True)
    one.a.b.append(3)
    assert (one.a.b, copied.a.b, other.a.b) == ([1, 2, 3], [1, 2], [1])
    assert not OmegaConf.is_readonly(one.a)
