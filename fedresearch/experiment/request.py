"""The request for a run, which another process can read as one string."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedresearch.config.schema import Config, from_plain


@dataclass(frozen=True)
class RunRequest:
    """An experiment to run, its directory, and the command for the record.

    Attributes
    ----------
    config : Config
        The checked config.
    choices : mapping
        Config group to chosen option.
    directory : Path
        The run's directory.
    overrides : list of str
        The overrides that were typed, for the record.
    command : list of str
        The command that holds them, for the record.
    config_dirs : list of str
        The folders of further options in the command, for the record.
    may_resume : bool
        Whether the directory may already hold the run. A finished run stays unchanged; an unfinished one continues from
        its last checkpoint.
    job : str
        The job's name in its sweep; "" for a single run.
    """

    config: Config
    choices: Mapping[str, str | None]
    directory: Path
    overrides: list[str]
    command: list[str]
    config_dirs: list[str]
    may_resume: bool = False
    job: str = ""

    def dumps(self) -> str:
        """Return the request as JSON."""
        return json.dumps({**vars(self), "config": asdict(self.config), "directory": str(self.directory)})

    @classmethod
    def loads(cls, text: str) -> "RunRequest":
        """Return the request that :meth:`dumps` wrote."""
        plain = json.loads(text)
        return cls(**{**plain, "config": from_plain(plain["config"]), "directory": Path(plain["directory"])})
