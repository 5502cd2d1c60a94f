"""What a run chooses by: whether the column is there, whose model it is of, and of which data."""

import logging
from difflib import get_close_matches

from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.federation.hooks import nested_strategies
from fedresearch.runs.columns import direction, expected_columns, is_declared

log = logging.getLogger("fedresearch")


def check_choices(experiment: Experiment) -> None:
    """Hold ``checkpoint.best`` and ``federation.target_accuracy`` to what the experiment measures, before it starts.

    What goes by the test split is named: whatever is chosen so has been fitted to it.

    Raises
    ------
    InputError
        If there is no such column, or it is of a global model that nobody trains.
    """
    config, own = experiment.config, experiment.client_app.has_own_model
    best = config.checkpoint.best
    counts = "personal" if own else "clients"
    measure = "eval_acc" if experiment.has_classes else "eval_loss"
    if best is not None:
        _refuse_unknown(experiment, best)
        if direction(best) == "none":
            raise InputError(
                f"checkpoint.best={best} has no best round: neither its largest nor its smallest value is best; "
                f"try checkpoint.best={counts}/{measure}"
            )
        if not is_declared(best):
            log.warning(
                "checkpoint.best=%s keeps the round with the %s value: the strategy measures it, and its name %s",
                best,
                *(
                    ("largest", "does not end in loss or error")
                    if direction(best) == "up"
                    else ("smallest", "ends in loss or error")
                ),
            )
        if best.startswith("eval/"):
            log.warning(
                "checkpoint.best=%s chooses the round on the test split, which cannot judge best.safetensors any more; "
                "checkpoint.best=%s/%s chooses on the clients' validation data",
                *(best, counts, measure),
            )
    chosen_by = {"checkpoint.best": best, "federation.target_accuracy": None}
    if config.federation.target_accuracy is not None:
        chosen_by["federation.target_accuracy"] = "eval/accuracy"
        log.warning(
            "federation.target_accuracy ends the run by eval/accuracy, on the test split: the number of rounds is a "
            "result, the accuracy of the last one is not"
        )
    for key, column in chosen_by.items():
        if own and column is not None and column.startswith(("eval/", "clients/")):
            _refuse_untrained(experiment, key, column)
            log.warning(
                "%s goes by %s, which is of the global model; with strategy=%s the clients' own models are the result: "
                "personal/%s",
                *(key, column, experiment.choices["strategy"], measure),
            )


def _refuse_untrained(experiment: Experiment, key: str, column: str) -> None:
    personal = sorted(experiment.personal)
    if personal:
        shown = ", ".join(personal[:3]) + f" and {len(personal) - 3} more" * (len(personal) > 3)
        other = (
            "checkpoint.best=personal/" if key == "checkpoint.best" else "a report's --targets with --metric personal/"
        )
        measure = "eval_acc" if experiment.has_classes else "eval_loss"
        raise InputError(
            f"{key} goes by {column} of a global model that nobody trains: with strategy="
            f"{experiment.choices['strategy']} {shown} stay on the clients, and the global model has the initial ones; "
            f"try {key}=null, and {other}{measure}"
        )


def _refuse_unknown(experiment: Experiment, column: str) -> None:
    known = expected_columns(
        classes=experiment.has_classes,
        evaluated=experiment.config.federation.fraction_evaluate > 0,
        own_models=experiment.client_app.has_own_model,
        dropped=experiment.config.federation.nonfinite == "drop",
    )
    # A strategy that is not ours nor Flower's may measure more, in its aggregations.
    if column in known or (column.startswith(("train/", "clients/")) and _measures_more(experiment)):
        return
    close = get_close_matches(column, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"checkpoint.best={column} is no column of this run, which has {', '.join(known)}{hint}")


def _measures_more(experiment: Experiment) -> bool:
    own_functions = any(key.endswith("_aggr_fn") for key in experiment.config.strategy["server"])
    kinds = [type(strategy).__module__ for strategy in nested_strategies(experiment.strategy)]
    return own_functions or not all(kind.startswith(("flwr.", "fedresearch.")) for kind in kinds)
