"""Checks the columns that select the best round and stop the run: that they exist, for which model, on which data."""

import logging
import math
from difflib import get_close_matches

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.hooks import nested_strategies
from fedresearch.federation.measures import Row
from fedresearch.runs.columns import direction, is_declared, larger_is_better

log = logging.getLogger("fedresearch")


class BestRound:
    """The first best round by ``checkpoint.best``, or else on the clients' validation data, where they evaluate.

    Parameters
    ----------
    experiment : Experiment
        The experiment that runs.
    rows : list of dict
        The rows of earlier rounds.
    """

    def __init__(self, experiment: Experiment, rows: list[Row]) -> None:
        models = "personal" if experiment.client_app.has_own_model else "clients"
        self._by = experiment.config.checkpoint.best or f"{models}/{experiment.main_metric}"
        self._rises = larger_is_better(self._by, experiment.declared_columns)
        self._shown = [f"{scope}/{name}" for scope in ("eval", models) for name in ("loss", *experiment.measured)]
        self._row: Row = {}
        self._score = -math.inf
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> bool:
        """Return whether the next round is the best so far; round 0, the initial model, is no round's."""
        score = _score(row, self._by, rises=self._rises)
        if not row["round"] or score <= self._score:
            return False
        self._row, self._score = row, score
        return True

    @property
    def summary(self) -> Row:
        """What to show of the round, under ``best/``; empty without one. ``best/by`` is the column that chose it."""
        shown = {f"best/{name}": self._row[name] for name in ("round", *self._shown, self._by) if name in self._row}
        return {"best/by": self._by, **shown} if shown else {}


def _score(row: Row, column: str, *, rises: bool) -> float:
    """Return a row's score by a column; larger is better, and a column that is missing or not finite is the worst."""
    value = row.get(column)
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if rises else -value


def check_selection(experiment: Experiment) -> None:
    """Check that the experiment measures ``checkpoint.best`` and ``federation.target_accuracy``, before it starts.

    Warn if the test split decides: the result is then fitted to it.

    Raises
    ------
    InputError
        If the column does not exist, or belongs to a global model that no client trains.
    """
    config, own = experiment.config, experiment.client_app.has_own_model
    best = config.checkpoint.best
    counts = "personal" if own else "clients"
    measure, columns = experiment.main_metric, experiment.declared_columns
    if best is not None:
        _refuse_unknown(experiment, best)
        if direction(best, columns) == "none":
            raise InputError(
                f"checkpoint.best={best} has no best round: neither its largest nor its smallest value is best; "
                f"try checkpoint.best={counts}/{measure}"
            )
        if not is_declared(best, columns):
            log.warning(
                "checkpoint.best=%s keeps the round with the %s value: the strategy measures it, and its name %s",
                best,
                *(
                    ("largest", "does not end in loss or error")
                    if direction(best, columns) == "up"
                    else ("smallest", "ends in loss or error")
                ),
            )
        if best.startswith("eval/"):
            log.warning(
                "checkpoint.best=%s chooses the round on the test split, which can then not judge best.safetensors; "
                "checkpoint.best=%s/%s chooses on the clients' validation data",
                *(best, counts, measure),
            )
    chosen_by = {"checkpoint.best": best, "federation.target_accuracy": None}
    if config.federation.target_accuracy is not None:
        chosen_by["federation.target_accuracy"] = "eval/accuracy"
        log.warning(
            "federation.target_accuracy ends the run by eval/accuracy, on the test split: the number of rounds is a "
            "result, the accuracy of the last round is not"
        )
    for key, column in chosen_by.items():
        if own and column is not None and column.startswith(("eval/", "clients/")):
            _refuse_untrained(experiment, key, column)
            log.warning(
                "%s uses %s of the global model; with strategy=%s the clients' own models are the result: personal/%s",
                *(key, column, experiment.choices["strategy"], measure),
            )


def _refuse_untrained(experiment: Experiment, key: str, column: str) -> None:
    personal = sorted(experiment.personal)
    if personal:
        listed = ", ".join(personal[:3]) + f" and {len(personal) - 3} more" * (len(personal) > 3)
        other = (
            "checkpoint.best=personal/" if key == "checkpoint.best" else "a report's --targets with --metric personal/"
        )
        raise InputError(
            f"{key} uses {column} of a global model that no client trains: with strategy="
            f"{experiment.choices['strategy']} {listed} stay on the clients, and the global model has initial values; "
            f"try {key}=null, and {other}{experiment.main_metric}"
        )


def _refuse_unknown(experiment: Experiment, column: str) -> None:
    known = experiment.columns
    declared = experiment.declared_columns
    # A strategy that is neither ours nor Flower's may measure more when it aggregates.
    if column in known or (column.startswith(("train/", "clients/")) and _measures_more(experiment)):
        return
    may_be = [name for name in known if direction(name, declared) != "none"]
    name = column.rpartition("/")[2]
    near = [f"{scope}/{name}" for scope in ("clients", "personal") if f"{scope}/{name}" in may_be]
    near = near or get_close_matches(column, may_be, n=1, cutoff=0.8)
    hint = f"try checkpoint.best={near[0]}" if near else f"it may be {', '.join(may_be)}"
    raise InputError(f"checkpoint.best={column} is not a column of this run; {hint}")


def _measures_more(experiment: Experiment) -> bool:
    own_functions = any(key.endswith("_aggr_fn") for key in experiment.config.strategy["server"])
    kinds = [type(strategy).__module__ for strategy in nested_strategies(experiment.strategy)]
    return own_functions or not all(kind.startswith(("flwr.", "fedresearch.")) for kind in kinds)
