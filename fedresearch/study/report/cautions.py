"""Cautions for a comparison: seeds and derived data that cells do not share, different code, runs left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from fedresearch.dotted_keys import as_json
from fedresearch.runs.loaded import wrong_model_warning
from fedresearch.study.report.baseline import Baseline
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import LoadedRun

# Digest of what a run derived from its config, to its name and the keys that it depends on besides the seed.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes", "strategy.pooled")
_DERIVED = {
    "data_sha256": ("samples", (*_PARTITION, "dtype")),
    "partition_sha256": ("partitions", _PARTITION),
    "validation_sha256": ("validation data", (*_PARTITION, "validation")),
    # Which weights are shared depends on the strategy.
    "initial_model_sha256": (
        "initial shared weights",
        ("dataset", "model", "dtype", "strategy.client", "strategy.buffers"),
    ),
    "sampling_sha256": (
        "sampled clients",
        (*_PARTITION, "sampling", "availability", "federation.fraction_train", "validation"),
    ),
}
# Packages that are always named, and those that are named where their versions vary.
_PACKAGES = ("torch", "flwr", "numpy")
_FURTHER = ("python", "torchvision", "flwr-datasets")
_DAGGERS = ("†", "‡", "§")


@dataclass(frozen=True)
class Cautions:
    """What a reader of a comparison must know.

    Parameters
    ----------
    warnings, notes : list of str
        What may be wrong, and what is right but should be known.
    marks : mapping
        Label of a cell to the mark behind it, such as † for runs of rarer code.
    legend : list of str
        The meaning of the marks.
    """

    warnings: Sequence[str]
    notes: Sequence[str]
    marks: Mapping[str, str]
    legend: Sequence[str]


def find_cautions(study: Study, baseline: Baseline, metric: str) -> Cautions:
    """Check the cells of a study for all that a fair comparison by a metric needs."""
    marks, legend, notes = _code(study)
    warnings = [
        *baseline.warnings,
        *_data_facts(study, "classes_untrained", "no client trains on some classes"),
        *_data_facts(study, "num_test_in_train", "some test samples equal samples that clients have"),
        *_unexpected_differences(study),
        *_without_shared_seed(study, baseline),
        *_global_models(study, metric),
    ]
    notes = [
        *_left_out(study),
        *_data_facts(study, "num_unheld", "no client has some of the training samples"),
        *notes,
        *_stopped_at_target(study),
        *_configured_differences(study, baseline),
    ]
    if not baseline.text:
        seed_warnings, seed_notes = _different_seeds(study)
        warnings, notes = [*warnings, *seed_warnings], [*notes, *seed_notes]
    return Cautions(warnings, notes, marks, legend)


def _unexpected_differences(study: Study) -> Iterator[str]:
    """Yield derived data that differ between runs although everything they depend on is equal."""
    for name, (words, sections) in _DERIVED.items():
        cases: dict[str, dict[str, str]] = {}  # values it depends on, to digest to the first cell with it
        for cell in study.cells:
            for run in cell.runs.values():
                if name in run.record:
                    case = as_json([_value_at(run.record["config"], key) for key in ("seed", *sections)])
                    cases.setdefault(case, {}).setdefault(run.record[name], study.short_label(cell))
        differing = [digests for digests in cases.values() if len(digests) > 1]
        if differing:
            first, second, *_ = differing[0].values()
            where = first if first == second else f"{first} and {second}"
            yield (
                f"the {words} differ between runs of the same seed and settings in {len(differing)} of {len(cases)} "
                f"cases, such as {where}: their code, packages or data differ"
            )


def _data_facts(study: Study, name: str, words: str) -> Iterator[str]:
    """Yield the number of cells whose runs record a fact about their data, with the first such cell."""
    found = {cell.label: (cell, run) for cell in study.cells for run in cell.runs.values() if _data(run).get(name)}
    if found:
        cell, run = next(iter(found.values()))
        number = f"{len(found)} of {counted(len(study.cells), 'cell')}"
        yield f"{words} in {number}, such as {study.short_label(cell)}: {_data(run)[name]}"


def _data(run: LoadedRun) -> Mapping[str, Any]:
    data = run.record.get("data")
    return data if isinstance(data, Mapping) else {}


def _configured_differences(study: Study, baseline: Baseline) -> Iterator[str]:
    """Yield derived data that cells do not share with their baselines."""
    for name, (words, _) in _DERIVED.items():
        differing = [
            cell
            for cell in study.cells
            if (partner := baseline.partners.get(cell.label))
            and any(_differs(name, run.record, partner.runs.get(seed, run).record) for seed, run in cell.runs.items())
        ]
        if differing:
            number = f"{len(differing)} of {counted(len(baseline.partners), 'cell')}"
            first = study.short_label(differing[0])
            yield f"the {words} differ from the baseline's in {number}, such as {first}"


def _differs(name: str, record: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Return whether a digest differs between two runs; weights only where both share the same part of the model."""
    comparable = name != "initial_model_sha256" or record.get("personal") == baseline.get("personal")
    return comparable and record.get(name) != baseline.get(name)


def _stopped_at_target(study: Study) -> Iterator[str]:
    """Yield the number of runs that stopped before their last round because they reached their target."""
    runs = [run for run in _runs(study) if run.state == "finished"]
    with_target = [run for run in runs if _value_at(run.record["config"], "federation.target_accuracy") is not None]
    early = [run for run in with_target if run.num_rounds < (run.planned_rounds or 0)]
    if early:
        yield (
            f"{len(early)} of {counted(len(runs), 'finished run')} stopped when they reached "
            "federation.target_accuracy on the test split; compare how long they took, not their last rounds"
        )


def _global_models(study: Study, metric: str) -> Iterator[str]:
    """Yield a line where a metric measures global models, and these are not the results of their runs."""
    personal = [study.short_label(cell) for cell in study.cells if any(run.own_models for run in cell.runs.values())]
    if line := wrong_model_warning(metric, personal, counted(len(study.cells), "cell")):
        yield line


def _value_at(config: Any, key: str) -> Any:
    """Return the value at a dotted key; None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _without_shared_seed(study: Study, baseline: Baseline) -> Iterator[str]:
    for cell in study.cells:
        other = baseline.partners.get(cell.label)
        if other and not cell.runs.keys() & other.runs.keys():
            yield (
                f"{study.short_label(cell)} shares no seed with its baseline {study.short_label(other)} "
                f"({_both_seeds(cell, other)}): they are not compared"
            )


def _different_seeds(study: Study) -> tuple[list[str], list[str]]:
    """Return a warning for the first two cells that share no seed; else a note for the first with different seeds."""
    first_cells = {frozenset(cell.runs): cell for cell in reversed(study.cells)}  # seeds to the first cell with them
    pairs = [*combinations(reversed(first_cells.values()), 2)]
    without_common = [(one, other) for one, other in pairs if not one.runs.keys() & other.runs.keys()]
    lines = [
        f"{study.short_label(one)} and {study.short_label(other)} "
        f"{'share no seed' if without_common else 'have different seeds'} ({_both_seeds(one, other)})"
        for one, other in (without_common or pairs)[:1]
    ]
    return (lines, []) if without_common else ([], lines)


def _both_seeds(one: Cell, other: Cell) -> str:
    return f"{', '.join(one.runs)} against {', '.join(other.runs)}"


def _code(study: Study) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the marks of cells with runs of rarer code, their legend, and notes."""
    sources = {run.directory: _sources(run) for run in _runs(study)}
    all_sources = [source for of_run in sources.values() for source in of_run]
    packages = [*_PACKAGES]
    packages += [name for name in _FURTHER if len({_versions(source).get(name) for source in all_sources}) > 1]
    codes = {
        directory: ", resumed with ".join(dict.fromkeys(_describe_source(source, packages) for source in of_run))
        for directory, of_run in sources.items()
    }
    (commonest, num_runs), *rarer = Counter(codes.values()).most_common() or [("", 0)]
    signs = {code: _DAGGERS[min(order, len(_DAGGERS) - 1)] for order, (code, _) in enumerate(rarer)}
    marks = {}
    for cell in study.cells:
        codes_of_cell = [codes[run.directory] for run in cell.runs.values()]
        if mark := "".join(dict.fromkeys(signs[code] for code in codes_of_cell if code != commonest)):
            marks[cell.label] = mark
    legend = [f"{signs[code]} {counted(count, 'run')}: {code}" for code, count in rarer[: len(_DAGGERS)]]
    if len(rarer) > len(_DAGGERS):
        legend[-1] = f"{_DAGGERS[-1]} runs with {len(rarer) - len(_DAGGERS) + 1} further versions of the code"
    if signs:
        legend.insert(0, f"unmarked, {counted(num_runs, 'run')}: {commonest}")
    is_committed = not any(word in commonest for word in ("uncommitted", "untracked", "resumed"))
    notes = [] if signs or is_committed else [f"all runs: {commonest}"]
    processors = {source["processor"] for source in all_sources if "processor" in source}
    if len(processors) > 1:
        notes.append(f"the runs used {len(processors)} kinds of processor, which may round differently")
    return marks, legend, notes


def _sources(run: LoadedRun) -> list[Mapping[str, Any]]:
    """Return the record as the run began, and as it was resumed each time, where it holds the changed fields."""
    return [run.record, *({**run.record, **changed} for changed in run.record.get("resumed") or ())]


def _describe_source(source: Mapping[str, Any], packages: Sequence[str]) -> str:
    """Return code and packages in words, and the working directory's code where it is a different repository."""
    git = source.get("git") or {}
    code, own = git.get("fedresearch"), git.get("working_directory")
    versions = _versions(source)
    words = [_checkout(code) if code else f"fedresearch {versions.get('fedresearch', '?')}"]
    if own and own != code:
        words.append(f"in a working directory of {_checkout(own)}")
    return ", ".join([*words, *(f"{name} {versions[name]}" for name in packages if name in versions)])


def _checkout(state: Mapping[str, Any]) -> str:
    words = f"commit {state['commit'][:10]}"
    if "dirty" in state and state["dirty"] is None:  # git refuses a repository of another owner
        return f"{words}, whose changes are unknown"
    if state.get("diff_sha256"):
        return f"{words} with uncommitted changes ({state['diff_sha256'][:6]})"
    return f"{words} with untracked files" if state.get("dirty") else words


def _versions(source: Mapping[str, Any]) -> dict[str, str]:
    python = {"python": source["python"]} if "python" in source else {}
    return {**python, **(source.get("versions") or {})}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _left_out(study: Study) -> Iterator[str]:
    if study.unread:
        states = Counter(run.state for run in study.unread)
        yield "not in any cell: " + ", ".join(f"{number} {state}" for state, number in states.items())
    if study.repeated:
        names = ", ".join(run.directory.name for run in study.repeated[:5])
        yield (
            f"{counted(len(study.repeated), 'run')} left out, since another of the same cell and seed has more rounds "
            f"or is newer: {names}{', ...' * (len(study.repeated) > 5)}"
        )
    for key, other in study.equal.items():
        yield f"{key} varies too, and equals {other} in every run"


def _runs(study: Study) -> Iterator[LoadedRun]:
    for cell in study.cells:
        yield from cell.runs.values()
