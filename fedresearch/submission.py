"""An experiment as the one string that crosses to where it runs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedresearch.config.schema import Config, from_plain

# The key of the run config that holds a submission, and the one that holds overrides to compose there.
EXPERIMENT, OVERRIDES = "experiment", "overrides"
# Begins each line that the launcher is to tell as the user's mistake.
ERROR = "error: "


@dataclass(frozen=True)
class Submission:
    """What :func:`fedresearch.run.run_experiment` is called with, and the command that was typed."""

    config: Config
    choices: Mapping[str, str | None]
    directory: Path
    overrides: list[str]
    command: list[str]
    config_dirs: list[str]
    again: bool

    def dumps(self) -> str:
        """Return it as JSON."""
        plain = {**vars(self), "config": asdict(self.config), "directory": str(self.directory)}
        return json.dumps(plain)

    @classmethod
    def loads(cls, text: str) -> "Submission":
        """Return what :meth:`dumps` wrote."""
        plain = json.loads(text)
        return cls(**{**plain, "config": from_plain(plain["config"]), "directory": Path(plain["directory"])})
