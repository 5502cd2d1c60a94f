"""Lets Hydra compose a command line once. It composes a first time only to see whether a file makes it a sweep."""

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig


def register() -> None:
    """Make Hydra's command line use the first config, or its error, instead of composing it again."""
    hydra._internal.hydra.ConfigLoaderImpl = _ComposesOnce  # type: ignore[attr-defined]


class _ComposesOnce(ConfigLoaderImpl):
    _words: list[str] | None = None  # of the first config
    _first: DictConfig | Exception

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Return a composed config."""
        if not validate_sweep_overrides:  # the first time; a sweep may leave options out, which is an error of a run
            self._words = [*overrides]
            try:
                self._first = super().load_configuration(config_name, overrides, RunMode.RUN, from_shell, False)
            except Exception as error:
                self._first = error
                raise
            return self._first
        words, self._words = self._words, None
        is_error = words is not None and isinstance(self._first, Exception)
        if words is None or words != overrides[: len(words)] or (is_error and run_mode == RunMode.MULTIRUN):
            return super().load_configuration(config_name, overrides, run_mode, from_shell, True)
        self.validate_sweep_overrides_legal(OverridesParser.create().parse_overrides(overrides), run_mode, from_shell)
        if isinstance(self._first, Exception):
            raise self._first
        for word in overrides[len(words) :]:  # hydra.mode, as Hydra knows it now
            self._first.hydra.overrides.hydra.append(word)
            self._first.hydra.mode = RunMode[word.partition("=")[2]]
        return self._first
