"""Saves almost half of the time in which Hydra 1.3 composes a config, most of which repeats what is known."""

import copy
import functools
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import version
from hydra._internal import defaults_list
from hydra.core.default_element import InputDefault
from omegaconf import DictConfig, OmegaConf, _utils, base

_OmegaConfLoader: Any = _utils.get_yaml_loader()


@functools.cache  # once is enough
def quicken() -> None:
    """Replace functions of Hydra and OmegaConf by ones that return the same sooner."""
    _utils.get_yaml_loader = lambda: _Loader
    base.parse = functools.lru_cache(maxsize=1000)(base.parse)  # type: ignore[attr-defined] # of interpolations
    base.Metadata.__deepcopy__ = _copied  # type: ignore[attr-defined]
    version._get_version = functools.cache(version._get_version)
    create_map = defaults_list._create_interpolation_map

    def create_needed_map(overrides: Any, defaults_list: list[InputDefault], self_added: bool) -> DictConfig:
        needed = any(default.is_interpolation() for default in defaults_list)
        return create_map(overrides, defaults_list, self_added) if needed else OmegaConf.create()

    defaults_list._create_interpolation_map = create_needed_map


class _Loader:
    """What ``yaml.load`` loads YAML with: each text once in a process."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def get_single_data(self) -> Any:
        """Return the content, to be read and not changed: the same text has the same object."""
        if isinstance(self._stream, str):
            return load_yaml(self._stream)
        try:
            return load_yaml(self._stream.read())
        except yaml.YAMLError:
            self._stream.seek(0)
            return _OmegaConfLoader(self._stream).get_single_data()  # raises an error that names the file

    def dispose(self) -> None:
        """Do nothing."""


@functools.lru_cache(maxsize=1000)
def load_yaml(text: str) -> Any:
    """Return the content of a YAML text, to be read and not changed."""
    try:
        return yaml.load(text, Loader=_LibYamlLoader)
    except yaml.YAMLError:
        return yaml.load(text, Loader=_OmegaConfLoader)  # raises an error of the usual words


if yaml.__with_libyaml__:

    class _LibYamlLoader(yaml.cyaml.CParser, _OmegaConfLoader):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

else:
    _LibYamlLoader = _OmegaConfLoader  # type: ignore[misc]


def _copied(metadata: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy of what OmegaConf knows of a node: all but two of its fields are immutable."""
    new = object.__new__(type(metadata))
    new.__dict__.update(metadata.__dict__)
    new.flags, new.resolver_cache = copy.deepcopy((metadata.flags, metadata.resolver_cache), memo)
    return new
