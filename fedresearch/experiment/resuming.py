"""Whether a started run may resume."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fedresearch.config import Config, differences, digest
from fedresearch.config.options import SECTIONS
from fedresearch.config.schema import GROUPS, MAY_CHANGE_ON_RESUME, counts
from fedresearch.dotted_keys import differing
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.request import RunRequest
from fedresearch.federation.measures import Row
from fedresearch.masking import masked_tree
from fedresearch.runs.comparison import format_changes, format_value
from fedresearch.runs.record import RECORD, num_rounds, read_run
from fedresearch.runs.record_fields import NEEDED_TO_RESUME, refuse_invalid_fields


def digest_for_resume(config: Config) -> str:
    """Return the digest of a config without the keys that may change on resume."""
    return digest(replace(config, federation=replace(config.federation, num_rounds=1, max_failures=0)))


def is_unfinished(past: Mapping[str, Any], request: RunRequest) -> bool:
    """Return whether a run has rounds left to do; print a line if not.

    Raises
    ------
    InputError
        If a key that changes the numbers differs from the run's record, except for more rounds, or ``checkpoint.best``
        differs from that of a finished run.
    """
    config, directory = request.config, request.directory
    refuse_invalid_fields(directory / RECORD, past, *NEEDED_TO_RESUME)
    _refuse_changed_numbers(past, request)
    planned, before = config.federation.num_rounds, past["config"]["federation"]["num_rounds"]
    _, rows = read_run(directory)
    done = num_rounds(rows)
    if past["status"] == "diverged" or (past["status"] == "finished" and planned == before):
        refuse_changed_selection(past, config, done)
        print(f"{directory} is {past['status']} after {done} rounds: nothing to do")
        return False
    least = max(done, before if past["status"] == "finished" else 0)
    if planned < least:
        raise InputError(
            f"{directory} is {past['status']} with federation.num_rounds={before} after {done} rounds, got "
            f"federation.num_rounds={planned}, which is fewer; try federation.num_rounds={least}"
        )
    return True


def _refuse_changed_numbers(past: Mapping[str, Any], request: RunRequest) -> None:
    """Reject a config that differs in keys that change the numbers; where an option differs, name it, not its keys."""
    changed = [
        (key, theirs, ours)
        for key, theirs, ours, numerical in differences(past["config"], masked_tree(asdict(request.config)))
        if numerical and key not in MAY_CHANGE_ON_RESUME
    ]
    if not changed:
        return
    options = [*differing(past["choices"], request.choices)]
    named = [option for option in options if option[0] in GROUPS and counts(option[0])]
    sections = tuple(f"{SECTIONS.get(group, group)}." for group, *_ in named)
    named += [one for one in changed if not f"{one[0]}.".startswith(sections)]
    typed = {word.partition("=")[0].lstrip("+~"): word for word in request.overrides if word not in past["overrides"]}
    keys = [f"{key}." for key, *_ in (*options, *changed)]
    wrong = [word for key, word in typed.items() if any(of.startswith(f"{key}.") for of in keys)]
    raise InputError(
        f"{request.directory} started with {format_changes(named)}; a resumed run must give the numbers that it "
        f"started with; {f'leave out {shlex.join(wrong)}' if wrong else 'restore these keys'}, or start a new run"
    )


def refuse_changed_data(past: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Reject a resume if the data, the initial weights or the cohorts differ from the start of the run.

    Raises
    ------
    InputError
        With the hash that differs.
    """
    for key in ("data_sha256", "partition_sha256", "validation_sha256", "initial_model_sha256", "sampling_sha256"):
        if past.get(key, record[key]) != record[key]:  # an older record may not have it
            raise InputError(
                f"{key} is {record[key]}, and was {past[key]} when the run started: the data, the code or packages "
                "have changed; restore them, or start a new run"
            )


def refuse_changed_rates(experiment: Experiment, rows: Sequence[Row]) -> None:
    """Reject more rounds if they would change the learning rates of finished rounds.

    Raises
    ------
    InputError
        With the first such round.
    """
    for row in rows:
        if row["round"] and row["local/lr"] != experiment.learning_rate(row["round"]):
            raise InputError(
                f"with federation.num_rounds={experiment.config.federation.num_rounds} the learning rate of round "
                f"{row['round']}, which is finished, would change; restore federation.num_rounds, or start a new run"
            )


def refuse_changed_selection(past: Mapping[str, Any], config: Config, num_rounds: int) -> None:
    """Reject another ``checkpoint.best`` after the first round: the models of finished rounds are not saved.

    Raises
    ------
    InputError
        With both columns.
    """
    best, before = config.checkpoint.best, past["config"].get("checkpoint", {}).get("best")
    if num_rounds and best != before:
        raise InputError(
            f"checkpoint.best is {format_value(best)}, and was {format_value(before)} in the {num_rounds} rounds "
            "that are done, whose models are gone; restore it, or start a new run"
        )
