"""Whether a comparison is fair: what cells share for each seed, and whether the same code made all of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedresearch.nested import as_json
from fedresearch.report.baseline import Baseline
from fedresearch.report.cells import Study
from fedresearch.report.load import Run

# What is derived of the config, and all that it depends on beside the seed.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes", "strategy.pooled")
_DERIVED = {
    "partition_sha256": ("partitions", _PARTITION),
    "validation_sha256": ("validation data", (*_PARTITION, "validation")),
    # Of the weights that are shared: what stays on the clients is the strategy's.
    "initial_model_sha256": (
        "initial shared weights",
        ("dataset", "model", "dtype", "strategy.client", "strategy.buffers"),
    ),
    "sampling_sha256": ("sampled clients", (*_PARTITION, "sampling", "federation.fraction_train", "validation")),
}
_DAGGERS = ("†", "‡", "§")


@dataclass(frozen=True)
class Fairness:
    """What a reader of a comparison must know.

    Parameters
    ----------
    warnings, notes : list of str
        What may be wrong, and what is as it must be but should be known.
    marks : mapping
        Label of a cell to what is put behind it: † for runs of other code than most.
    legend : list of str
        What the marks stand for.
    """

    warnings: Sequence[str]
    notes: Sequence[str]
    marks: Mapping[str, str]
    legend: Sequence[str]


def fairness(study: Study, compared: Baseline) -> Fairness:
    """Hold the cells of a study to what a fair comparison needs."""
    marks, legend, notes = _code(study)
    warnings = [*compared.warnings, *_underived(study), *_lonely(study, compared)]
    notes = [*_left_out(study), *notes, *_at_target(study), *_unpaired(study, compared)]
    return Fairness(warnings, notes, marks, legend)


def _underived(study: Study) -> Iterator[str]:
    """Yield what is other between runs though all that it depends on is equal."""
    for name, (words, sections) in _DERIVED.items():
        alike: dict[str, dict[str, str]] = {}  # by what it depends on: digest to the first cell
        for cell in study.cells:
            for run in cell.runs.values():
                if name in run.record:
                    given = as_json([_at(run.record["config"], key) for key in ("seed", *sections)])
                    alike.setdefault(given, {}).setdefault(run.record[name], cell.label)
        others = [seen for seen in alike.values() if len(seen) > 1]
        if others:
            first, second, *_ = others[0].values()
            where = first if first == second else f"{first} and {second}"
            yield (
                f"the {words} differ between runs of one seed, in {len(others)} of {len(alike)} cases, such as of "
                f"{where}, though their configs do not ask for it: other code, packages or data"
            )


def _unpaired(study: Study, compared: Baseline) -> Iterator[str]:
    """Yield what cells do not share with their baselines, as their configs ask for it."""
    for name, (words, _) in _DERIVED.items():
        others = [
            cell.label
            for cell in study.cells
            if cell.label in compared.of
            for replicate, run in cell.runs.items()
            if run.record.get(name) != compared.of[cell.label].runs.get(replicate, run).record.get(name)
        ]
        cells = dict.fromkeys(others)
        if cells:
            number = f"{len(cells)} of {counted(len(compared.of), 'cell')}"
            yield f"the {words} are not the baseline's in {number}, such as {next(iter(cells))}"


def _at_target(study: Study) -> Iterator[str]:
    """Yield how many runs ended before their last round, for they reached their target."""
    runs = [run for run in _runs(study) if run.state == "finished"]
    aiming = [run for run in runs if _at(run.record["config"], "federation.target_accuracy") is not None]
    early = [run for run in aiming if run.num_rounds < run.record["config"]["federation"]["num_rounds"]]
    if early:
        yield (
            f"{len(early)} of {counted(len(runs), 'finished run')} ended when they reached federation.target_accuracy: "
            "what they have after the last round says little, how long they took says more"
        )


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _lonely(study: Study, compared: Baseline) -> Iterator[str]:
    for cell in study.cells:
        other = compared.of.get(cell.label)
        if other and not cell.runs.keys() & other.runs.keys():
            yield (
                f"{cell.label} shares no seed with its baseline {other.label} ({', '.join(cell.runs)} against "
                f"{', '.join(other.runs)}): they are not compared"
            )


def _code(study: Study) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the marks of cells with runs of other code than most, what they stand for, and notes."""
    told = {id(run): _whence(run) for run in _runs(study)}
    (most, number), *others = Counter(told.values()).most_common() or [("", 0)]
    signs = {code: _DAGGERS[min(order, len(_DAGGERS) - 1)] for order, (code, _) in enumerate(others)}
    marks = {}
    for cell in study.cells:
        found = dict.fromkeys(signs[told[id(run)]] for run in cell.runs.values() if told[id(run)] != most)
        if found:
            marks[cell.label] = "".join(found)
    legend = [f"{signs[code]} {counted(count, 'run')} by {code}" for code, count in others[: len(_DAGGERS)]]
    if len(others) > len(_DAGGERS):
        legend[-1] = f"{_DAGGERS[-1]} runs by {len(others) - len(_DAGGERS) + 1} further versions of the code"
    if signs:
        legend.insert(0, f"unmarked: {counted(number, 'run')} by {most}")
    notes = [] if signs or "uncommitted" not in most else [f"all runs are by {most}"]
    processors = {run.record["processor"] for run in _runs(study) if "processor" in run.record}
    if len(processors) > 1:
        notes.append(f"the runs are of {len(processors)} kinds of processor, which may round differently")
    return marks, legend, notes


def _whence(run: Run) -> str:
    """Return in words the code that a run began with, and the packages that its numbers depend on."""
    code = (run.record.get("git") or {}).get("fedresearch") or {}
    versions = run.record.get("versions") or {}
    words = f"commit {code['commit'][:10]}" if code else f"fedresearch {versions.get('fedresearch', '?')}"
    if code.get("diff_sha256"):
        words += f" with uncommitted changes ({code['diff_sha256'][:6]})"
    packages = [f"{name} {versions[name]}" for name in ("torch", "flwr", "numpy") if name in versions]
    return ", ".join([words, *packages])


def counted(count: int, noun: str) -> str:
    """Return how many there are of something, in words."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _left_out(study: Study) -> Iterator[str]:
    if study.unread:
        states = Counter(run.state for run in study.unread)
        yield "not in any cell: " + ", ".join(f"{number} {state}" for state, number in states.items())
    if study.repeated:
        names = ", ".join(run.directory.name for run in study.repeated[:5])
        yield (
            f"{counted(len(study.repeated), 'run')} left out, since another of the same cell and seed is further or "
            f"newer: {names}{', ...' * (len(study.repeated) > 5)}"
        )
    for key, other in study.equal.items():
        yield f"{key} varies too, and always has the values of {other}"


def _runs(study: Study) -> Iterator[Run]:
    for cell in study.cells:
        yield from cell.runs.values()
