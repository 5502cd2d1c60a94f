"""Rows of clients from earlier runs, which spare a run the import of Flower Datasets."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fedresearch.data import partition
from fedresearch.data.cache import read_arrays
from fedresearch.data.source import Rows, Samples

# Entries that are kept: the newest.
_KEPT = 100


class CachedRows:
    """The rows of each client, for one partitioner's arguments and one set of samples.

    An entry cannot stop a run: one that cannot be read is made again, and one that cannot be written is left out.

    Parameters
    ----------
    cache_dir : path
        Folder of the entries.
    arguments : mapping
        Everything else on which the rows depend, as plain values.
    samples : Samples
        The samples, of which a partitioner sees the columns.
    """

    def __init__(self, cache_dir: str | Path, arguments: Mapping[str, Any], samples: Samples) -> None:
        code = [Path(partition.__file__).read_text(), *map(version, ("flwr-datasets", "datasets", "numpy"))]
        sha = hashlib.sha256(json.dumps([dict(arguments), len(samples.y), code], default=str).encode())
        for name, column in partition.columns(samples).items():
            sha.update(name.encode() + column.tobytes())
        self._entry = Path(cache_dir).expanduser() / f"partition-{sha.hexdigest()[:32]}.npz"

    def read(self) -> list[Rows] | None:
        """Return the rows; None if they are not kept."""
        try:
            arrays = read_arrays(self._entry)
            return np.split(arrays["rows"], arrays["ends"][:-1])
        except Exception:
            return None

    def write(self, rows: Sequence[Rows]) -> None:
        """Keep rows, and remove the oldest entries."""
        folder = self._entry.parent
        unfinished = folder / f"{self._entry.name}.{os.getpid()}"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("wb") as file:
                    np.savez(file, rows=np.concatenate(rows), ends=np.cumsum([*map(len, rows)]))
                unfinished.replace(self._entry)
            finally:
                unfinished.unlink(missing_ok=True)
            for entry in sorted(folder.glob("partition-*.npz"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                entry.unlink(missing_ok=True)
