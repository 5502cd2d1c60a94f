"""Hydra's basic sweeper, which runs the composed jobs and not the product of the typed values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from fedresearch.study.sweep.compose import Job, sweep_directory
from fedresearch.study.sweep.progress import SweepProgress

Plugins.instance()  # imports Hydra's plugins again: it does not use a class that was imported before
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class ComposedJobs(BasicSweeper):
    """Runs ``jobs``, in their order, and shows the progress in their sweep's ``directory``."""

    jobs: ClassVar[Sequence[Job]] = ()
    directory: ClassVar[Path] = Path()

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the jobs' overrides, in batches."""
        jobs = [job.overrides for job in ComposedJobs.jobs]
        return [*BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: each job was composed and checked."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; if interrupted, say how to continue the sweep."""
        try:
            with SweepProgress(self.jobs, self.directory):
                return super().sweep(arguments)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command continues the sweep") from None


def replace_jobs(jobs: Sequence[Job], sweep: DictConfig) -> None:
    """Make Hydra run these jobs in place of those of the basic sweeper that the sweep's config names."""
    ComposedJobs.jobs, ComposedJobs.directory = jobs, sweep_directory(sweep)
    Plugins.instance().class_name_to_class[sweep.hydra.sweeper._target_] = ComposedJobs
