"""A partition from a file, such as one that another codebase has made."""

import json
from pathlib import Path

from datasets import Dataset
from flwr_datasets.partitioner import Partitioner

from fedresearch.errors import InputError, reason


class FilePartitioner(Partitioner):  # type: ignore[misc]
    """A partitioner that reads the rows of each client from a JSON file: a list of lists of integers from 0.

    Parameters
    ----------
    path : str or None
        The file.

    Raises
    ------
    InputError
        If it cannot be read, or holds anything else.
    """

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path is None:
            raise InputError("partitioner=file needs a file with the rows of each client; try partitioner.path=FILE")
        try:
            self._rows = json.loads(Path(path).expanduser().read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"partitioner.path={path} cannot be read: {reason(error)}") from error
        is_list = isinstance(self._rows, list) and self._rows and all(isinstance(rows, list) for rows in self._rows)
        if not is_list or not all(type(row) is int and row >= 0 for rows in self._rows for row in rows):
            raise InputError(
                f"partitioner.path={path} must hold a list of rows, which are integers >= 0, for each client, such as "
                "[[0, 5, 9], [1, 2]]"
            )

    @property
    def num_partitions(self) -> int:
        """Number of lists in the file."""
        return len(self._rows)

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the samples of one client."""
        return self.dataset.select(self._rows[partition_id])
