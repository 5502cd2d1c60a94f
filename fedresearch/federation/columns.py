"""The names of a row's numbers, known before the first round."""

# As in a row, but for its SHA-256. What the strategy measures itself comes in addition, as train/NAME and clients/NAME.
_ALWAYS = (
    "round",
    "local/lr",
    "local/steps",
    "train/loss",
    "update/norm",
    "update/cosine",
    "clients/sampled",
    "clients/failed",
    "clients/evaluated",
    "comm/bytes_down",
    "comm/bytes_up",
    "comm/bytes_down_total",
    "comm/bytes_up_total",
    "eval/loss",
    "time/round_s",
    "time/total_s",
)


def columns(*, classes: bool, evaluated: bool, own_models: bool, dropped: bool) -> list[str]:
    """Return the columns of ``metrics.jsonl`` that are of numbers.

    Parameters
    ----------
    classes : bool
        Whether the dataset has classes, and so accuracies.
    evaluated : bool
        Whether clients evaluate.
    own_models : bool
        Whether they evaluate models of their own, too.
    dropped : bool
        Whether updates that are not finite are left out and counted.
    """
    found = [*_ALWAYS]
    if dropped:
        found.append("clients/dropped")
    if classes:
        found.append("eval/accuracy")
    if evaluated:
        found += ["comm/evaluate_bytes_down", "comm/evaluate_bytes_up"]
    for whose in ("clients", "personal"):
        if evaluated and (whose == "clients" or own_models):
            found += [f"{whose}/eval_loss", *(f"{whose}/loss_{part}" for part in ("mean", "std", "p90", "worst"))]
            if classes:
                found += [
                    f"{whose}/eval_acc",
                    *(f"{whose}/accuracy_{part}" for part in ("mean", "std", "p10", "worst")),
                ]
    return found
