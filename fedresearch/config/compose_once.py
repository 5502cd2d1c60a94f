"""Lets Hydra compose what it runs once.

It composes a command line a first time to see whether a file makes it a sweep, and a sweep's job after its check.
"""

from collections.abc import Sequence
from typing import ClassVar

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_MOST_JOBS = 100


def register() -> None:
    """Make Hydra's command line use the first config, or its error, instead of composing it again."""
    hydra._internal.hydra.ConfigLoaderImpl = _ComposesOnce  # type: ignore[attr-defined]


def keep(words: Sequence[str], composed: DictConfig) -> None:
    """Keep the config of a sweep's job until it runs. Those of large sweeps need too much memory."""
    if len(_ComposesOnce.jobs) < _MOST_JOBS:
        _ComposesOnce.jobs[*words,] = composed


def keep_none() -> None:
    """Forget the jobs of another sweep."""
    _ComposesOnce.jobs.clear()


class _ComposesOnce(ConfigLoaderImpl):
    jobs: ClassVar[dict[tuple[str, ...], DictConfig]] = {}  # of this process: a loader is sent to workers
    _words: Sequence[str] = ()  # of the first config
    _first: DictConfig | Exception | None = None

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
        words, first = self._words, self._first
        self._first = None
        is_of_a_sweep = isinstance(first, Exception) and run_mode == RunMode.MULTIRUN
        if first is None or words != overrides[: len(words)] or is_of_a_sweep:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, True)
        self.validate_sweep_overrides_legal(OverridesParser.create().parse_overrides(overrides), run_mode, from_shell)
        if isinstance(first, Exception):
            raise first
        for word in overrides[len(words) :]:  # hydra.mode, as Hydra knows it now
            first.hydra.overrides.hydra.append(word)
            first.hydra.mode = RunMode[word.partition("=")[2]]
        return first

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config of a sweep's job."""
        known = self.jobs.pop((*sweep_overrides,), None)
        if known is None:
            return super().load_sweep_config(master_config, sweep_overrides)
        OmegaConf.set_readonly(known.hydra, False)  # as at first; Hydra writes the job's number
        return known
