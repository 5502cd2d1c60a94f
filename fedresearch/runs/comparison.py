"""What two runs differ in: what they ran with, as their records say, and their rounds' numbers."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fedresearch.dotted_keys import ABSENT, Difference, differing
from fedresearch.errors import printable
from fedresearch.runs.record import Row, num_rounds, untimed

# Fields of a record, under the headings that reports of differences use. A group is reported by its keys.
_GROUPS = {"options": "choices", "code": "git", "packages": "versions"}
_FIELDS = {
    "machine": ("python", "platform", "processor", "num_threads"),
    "derived": (
        "data_sha256",
        "partition_sha256",
        "validation_sha256",
        "initial_model_sha256",
        "sampling_sha256",
    ),
}


def record_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """Return what two records differ in beside the config: options, code, packages, machine, and what is derived.

    What one of the records does not know is left out.

    Parameters
    ----------
    a, b : mapping
        The records.

    Returns
    -------
    dict
        Heading to differences, without headings that have none.
    """
    found = {
        heading: [(key or field, x, y) for key, x, y in differing(a[field], b[field])]
        for heading, field in _GROUPS.items()
        if field in a and field in b
    }
    for heading, fields in _FIELDS.items():
        found[heading] = [
            difference
            for field in fields
            if field in a and field in b
            for difference in differing(a[field], b[field], field)
        ]
    return {heading: differences for heading, differences in found.items() if differences}


@dataclass(frozen=True)
class Numbers:
    """How far the numbers of two runs are the same, their times aside.

    Parameters
    ----------
    common : int or None
        The last round through which they are; None: not even in the first, or one of the runs has none.
    num_rounds : tuple of int
        How many rounds each run has.
    identical : bool
        Whether all rows are the same, of the same rounds in both runs, and there are any.
    since : int
        The first round that differs, where there is one.
    differing : list
        What it differs in.
    """

    common: int | None
    num_rounds: tuple[int, int]
    identical: bool
    since: int
    differing: list[Difference]

    def lines(self, names: tuple[str, str] = ("A", "B")) -> list[str]:
        """Return the verdict in words, and below it the keys and values that differ first."""
        same = f"identical through round {self.common}"
        if self.differing:
            since = f"numbers differ from round {self.since} on" + f", {same}" * (self.common is not None)
            return [since, *difference_lines(self.differing)]
        if self.num_rounds == (0, 0):
            return ["neither has a round, so there are no numbers to compare"]
        shorter, longer = sorted(range(2), key=self.num_rounds.__getitem__)
        if self.num_rounds[shorter] < self.num_rounds[longer]:
            return [
                f"{same}, of which {names[shorter]} has no further; {names[longer]} has {self.num_rounds[longer]}"
                if self.common is not None
                else f"{names[shorter]} has no round to compare, {names[longer]} has {self.num_rounds[longer]}"
            ]
        return [same if self.identical else f"{same}, but only one has a row of round 0"]


def compare_rows(a: Sequence[Row], b: Sequence[Row]) -> Numbers:
    """Compare two runs' rows, round by round until one differs."""
    theirs = {row["round"]: untimed(row) for row in b}
    rounds = {row["round"]: [*differing(untimed(row), theirs[row["round"]])] for row in a if row["round"] in theirs}
    same = [*takewhile(lambda server_round: not rounds[server_round], rounds)]
    since, differences = next(((each, found) for each, found in rounds.items() if found), (0, []))
    identical = bool(same) and len(same) == len(a) == len(b)
    return Numbers(same[-1] if same else None, (num_rounds(a), num_rounds(b)), identical, since, differences)


def difference_lines(differences: Iterable[Difference]) -> list[str]:
    """Return a line for each difference: its key and both values."""
    return [f"  {format_value(key)}: {format_value(a)} | {format_value(b)}" for key, a, b in differences]


def format_changes(differences: Iterable[Difference]) -> str:
    """Return keys with both values, such as ``seed=0 (now 1), local.steps not set (now 3)``."""
    return ", ".join(
        f"{key}{' ' if before is ABSENT else '='}{format_value(before)} (now {format_value(now)})"
        for key, before, now in differences
    )


def format_value(value: Any) -> str:
    """Return a value as one line of printable text; of a digest or a commit its first 12 digits."""
    if value is ABSENT:
        return str(value)
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return value[:12]
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text[1:-1] if isinstance(value, str) and value not in ("", "null", "true", "false") else text
    return printable(text)
