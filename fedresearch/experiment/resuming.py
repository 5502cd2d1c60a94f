"""Whether a run that was begun may go on, and from where."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedresearch.config import Config, differences, digest
from fedresearch.dotted_keys import ABSENT
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.measures import Row
from fedresearch.masking import masked_tree
from fedresearch.runs.comparison import format_value
from fedresearch.runs.record import RECORD, read_run
from fedresearch.runs.record_fields import NEEDED_TO_RESUME, refuse_invalid_fields

# They change no number of the rounds that are done.
_MAY_CHANGE = ("federation.num_rounds", "federation.max_failures")


def lasting_digest(config: Config) -> str:
    """Return a config's digest, but for what may change as its run is resumed."""
    return digest(replace(config, federation=replace(config.federation, num_rounds=1, max_failures=0)))


def is_unfinished(past: Mapping[str, Any], config: Config, directory: Path) -> bool:
    """Return whether a run has anything left to do; print a line where it has not.

    Raises
    ------
    InputError
        If the config is another than that of the run's beginning, but for what changes no number and more rounds.
    """
    refuse_invalid_fields(directory / RECORD, past, *NEEDED_TO_RESUME)
    changed = [
        f"{key}{' not set' if theirs is ABSENT else f'={format_value(theirs)}'} "
        f"(now {'not set' if ours is ABSENT else format_value(ours)})"
        for key, theirs, ours, numerical in differences(past["config"], masked_tree(asdict(config)))
        if numerical and key not in _MAY_CHANGE
    ]
    if changed:
        raise InputError(
            f"{directory} was begun with {', '.join(changed)}; a run goes on with the numbers that it was begun with, "
            "so leave these keys as they were, or start a new run"
        )
    num_rounds, before = config.federation.num_rounds, past["config"]["federation"]["num_rounds"]
    _, rows = read_run(directory)
    done = len(rows)
    if past["status"] == "diverged" or (past["status"] == "finished" and num_rounds == before):
        print(f"{directory} is {past['status']} after {done} rounds: there is nothing to do")
        return False
    least = max(done, before if past["status"] == "finished" else 0)
    if num_rounds < least:
        raise InputError(
            f"{directory} is {past['status']} with federation.num_rounds={before} after {done} rounds, and "
            f"federation.num_rounds={num_rounds} is fewer; try federation.num_rounds={least}"
        )
    return True


def refuse_other_data(past: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, initial weights or draws than those of the run's beginning.

    Raises
    ------
    InputError
        With what is other.
    """
    for key in ("data_sha256", "partition_sha256", "validation_sha256", "initial_model_sha256", "sampling_sha256"):
        if past.get(key, record[key]) != record[key]:  # an older record may not have it
            raise InputError(
                f"{key} is {record[key]}, and was {past[key]} when the run was begun: the data, the code or packages "
                "have changed; bring them back, or start a new run"
            )


def refuse_other_rates(experiment: Experiment, rows: Sequence[Row]) -> None:
    """Refuse more rounds where that changes the learning rates of the rounds that are done.

    Raises
    ------
    InputError
        With the first such round.
    """
    for row in rows:
        if row["local/lr"] != experiment.learning_rate(row["round"]):
            raise InputError(
                f"with federation.num_rounds={experiment.config.federation.num_rounds} the learning rate of round "
                f"{row['round']}, which is done, would be another; leave federation.num_rounds, or start a new run"
            )


def refuse_other_choice(past: Mapping[str, Any], config: Config, num_rounds: int) -> None:
    """Refuse to choose the best round by another column, where rounds are done: their models were not kept for it.

    Raises
    ------
    InputError
        With both columns.
    """
    best, before = config.checkpoint.best, past["config"].get("checkpoint", {}).get("best")
    if num_rounds and best != before:
        raise InputError(
            f"checkpoint.best is {format_value(best)}, and was {format_value(before)} in the {num_rounds} rounds "
            "that are done, whose models are gone; leave it as it was, or start a new run"
        )
