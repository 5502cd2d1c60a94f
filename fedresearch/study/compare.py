"""The command ``fedresearch compare A B``: the differences of two runs. Imports neither torch nor flwr."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedresearch.config import differences, without_classes
from fedresearch.config.verbs import VerbParser, reporting
from fedresearch.errors import printing
from fedresearch.runs.comparison import compare_rows, difference_lines, format_value, record_differences
from fedresearch.runs.record import Edited, Row, num_rounds, read_record, read_rows, read_run, refuse_no_run

_DESCRIPTION = """\
Print the differences of two runs: config, options, code, packages, machine,
what they derived (partition, validation split, initial weights, sampling), and
the first round with different numbers. Times are left out.
"""
_EPILOG = """\
Values are printed as A's | B's. Exit code: 0 if both have the same rounds with
the same numbers, to the last bit; 1 if not, or if a run cannot be read.

example:
  fedresearch compare outputs/one outputs/other
"""


def compare(first: Path, second: Path) -> tuple[list[str], bool]:
    """Compare two runs' directories.

    Returns
    -------
    lines : list of str
        Their differences.
    identical : bool
        Whether both have the same rounds with the same numbers.

    Raises
    ------
    InputError
        If a directory does not hold a run, or the run is damaged.
    """
    refuse_no_run(first, second)
    records, rows = zip(*map(_read, (first, second)), strict=True)
    config = differences(*(record["config"] if isinstance(record.get("config"), dict) else {} for record in records))
    config = without_classes(config, *records)
    lines = ["config"] * bool(config)
    for key, a, b, numerical in config:
        lines += [line + " (changes no number)" * (not numerical) for line in difference_lines([(key, a, b)])]
    for heading, found in record_differences(*records).items():
        lines += [heading, *difference_lines(found)]
    numbers = compare_rows(*rows)
    if not lines and numbers.identical:
        return [f"nothing differs: {', '.join(numbers.lines())}"], True
    heads = [
        f"{letter}  {path}: {format_value(record.get('status'))}, {num_rounds(own)} round{'s' * (num_rounds(own) != 1)}"
        for letter, path, record, own in zip("AB", (first, second), records, rows, strict=True)
    ]
    return [*heads, *lines, *numbers.lines()], numbers.identical


def _read(directory: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return a run's record and rows; of edited rows, warn only, since the comparison can find the edit."""
    try:
        return read_run(directory)
    except Edited as edited:
        print(f"warning: {edited}", file=sys.stderr)
        return read_record(directory), read_rows(directory)


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    parser = VerbParser("compare", _DESCRIPTION, _EPILOG)
    parser.add_argument("A", type=Path, help="a run's directory")
    parser.add_argument("B", type=Path, help="another run's directory")
    with printing(), reporting():
        arguments = parser.parse_args(words)
        lines, identical = compare(arguments.A, arguments.B)
        print("\n".join(lines))
    sys.exit(not identical)
