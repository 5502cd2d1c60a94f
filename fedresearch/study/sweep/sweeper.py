"""Hydra's basic sweeper, but for the jobs that it runs: those that were composed, not the product of what was typed."""

from collections.abc import Sequence
from typing import Any, ClassVar

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from fedresearch.study.sweep.compose import Job

Plugins.instance()  # imports Hydra's plugins anew: a class that was imported before is not the one that it uses
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class ComposedJobs(BasicSweeper):
    """Runs ``jobs``, in their order."""

    jobs: ClassVar[Sequence[Job]] = ()

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the jobs' overrides, in batches."""
        jobs = [job.overrides for job in ComposedJobs.jobs]
        return [*BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing, for each job was composed and checked."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; a sweep that is interrupted names what continues it."""
        try:
            return super().sweep(arguments)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command continues the sweep") from None


def run_these(jobs: Sequence[Job], sweep: DictConfig) -> None:
    """Let Hydra run these jobs, whatever basic sweeper the sweep's config names."""
    ComposedJobs.jobs = jobs
    Plugins.instance().class_name_to_class[sweep.hydra.sweeper._target_] = ComposedJobs
