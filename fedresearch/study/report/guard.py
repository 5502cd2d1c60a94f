"""Whether a comparison is fair: what cells share for each seed, and whether the same code made all of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from fedresearch.dotted_keys import as_json
from fedresearch.runs.loaded import wrong_model_warning
from fedresearch.study.report.baseline import Baseline
from fedresearch.study.report.cells import Cell, Study
from fedresearch.study.report.load import Run

# What is derived of the config, and all that it depends on beside the seed.
_PARTITION = ("dataset", "partitioner", "federation.num_supernodes", "strategy.pooled")
_DERIVED = {
    "data_sha256": ("samples", (*_PARTITION, "dtype")),
    "partition_sha256": ("partitions", _PARTITION),
    "validation_sha256": ("validation data", (*_PARTITION, "validation")),
    # Of the weights that are shared: what stays on the clients is the strategy's.
    "initial_model_sha256": (
        "initial shared weights",
        ("dataset", "model", "dtype", "strategy.client", "strategy.buffers"),
    ),
    "sampling_sha256": ("sampled clients", (*_PARTITION, "sampling", "federation.fraction_train", "validation")),
}
# The packages that are told of any code, and what is told where it is not the same in all runs.
_PACKAGES = ("torch", "flwr", "numpy")
_FURTHER = ("python", "torchvision", "flwr-datasets")
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


def fairness(study: Study, compared: Baseline, metric: str = "personal/eval_acc") -> Fairness:
    """Hold the cells of a study to what a fair comparison by a metric needs."""
    marks, legend, notes = _code(study)
    warnings = [
        *compared.warnings,
        *_data_with(study, "classes_untrained", "no client trains on some classes"),
        *_data_with(study, "num_test_in_train", "some test samples equal samples that clients have"),
        *_underived(study),
        *_lonely(study, compared),
        *_no_result(study, metric),
    ]
    notes = [
        *_left_out(study),
        *_data_with(study, "num_unheld", "no client has some of the training samples"),
        *notes,
        *_at_target(study),
        *_unpaired(study, compared),
    ]
    if not compared.text:
        apart, other = _other_seeds(study)
        warnings, notes = [*warnings, *apart], [*notes, *other]
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


def _data_with(study: Study, name: str, words: str) -> Iterator[str]:
    """Yield in how many cells a fact of the runs' data holds, and the first one."""
    cells = {cell.label: run for cell in reversed(study.cells) for run in cell.runs.values() if _data(run).get(name)}
    if cells:
        label, run = [*cells.items()][-1]
        yield f"{words} in {len(cells)} of {counted(len(study.cells), 'cell')}, such as {label}: {_data(run)[name]}"


def _data(run: Run) -> Mapping[str, Any]:
    data = run.record.get("data")
    return data if isinstance(data, Mapping) else {}


def _unpaired(study: Study, compared: Baseline) -> Iterator[str]:
    """Yield what cells do not share with their baselines, as their configs ask for it."""
    for name, (words, _) in _DERIVED.items():
        others = [
            cell.label
            for cell in study.cells
            if cell.label in compared.of
            for replicate, run in cell.runs.items()
            if _differs(name, run.record, compared.of[cell.label].runs.get(replicate, run).record)
        ]
        cells = dict.fromkeys(others)
        if cells:
            number = f"{len(cells)} of {counted(len(compared.of), 'cell')}"
            yield f"the {words} are not the baseline's in {number}, such as {next(iter(cells))}"


def _differs(name: str, record: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Return whether two runs have other digests of the same; other parts of the model may be shared."""
    comparable = name != "initial_model_sha256" or record.get("personal") == baseline.get("personal")
    return comparable and record.get(name) != baseline.get(name)


def _at_target(study: Study) -> Iterator[str]:
    """Yield how many runs ended before their last round, for they reached their target."""
    runs = [run for run in _runs(study) if run.state == "finished"]
    aiming = [run for run in runs if _at(run.record["config"], "federation.target_accuracy") is not None]
    early = [run for run in aiming if run.num_rounds < (run.planned_rounds or 0)]
    if early:
        yield (
            f"{len(early)} of {counted(len(runs), 'finished run')} ended when they reached federation.target_accuracy "
            "on the test split: what they have after the last round says little, how long they took says more"
        )


def _no_result(study: Study, metric: str) -> Iterator[str]:
    """Yield a line where a metric is of global models that are not the results of their runs."""
    personal = [cell.label for cell in study.cells if any(run.own_models for run in cell.runs.values())]
    if line := wrong_model_warning(metric, personal, counted(len(study.cells), "cell")):
        yield line


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _lonely(study: Study, compared: Baseline) -> Iterator[str]:
    for cell in study.cells:
        other = compared.of.get(cell.label)
        if other and not cell.runs.keys() & other.runs.keys():
            yield (
                f"{cell.label} shares no seed with its baseline {other.label} ({_against(cell, other)}): "
                "they are not compared"
            )


def _other_seeds(study: Study) -> tuple[list[str], list[str]]:
    """Return a warning where two cells share no seed, or else a note where two have not the same."""
    of_seeds = {frozenset(cell.runs): cell for cell in reversed(study.cells)}  # to the first cell that has them
    pairs = [*combinations(reversed(of_seeds.values()), 2)]
    for one, other in pairs:
        if not one.runs.keys() & other.runs.keys():
            return [f"{one.label} and {other.label} share no seed ({_against(one, other)})"], []
    return [], [f"{one.label} and {other.label} have other seeds ({_against(one, other)})" for one, other in pairs[:1]]


def _against(one: Cell, other: Cell) -> str:
    return f"{', '.join(one.runs)} against {', '.join(other.runs)}"


def _code(study: Study) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the marks of cells with runs of other code than most, what they stand for, and notes."""
    sources = {id(run): _sources(run) for run in _runs(study)}
    every = [source for of_run in sources.values() for source in of_run]
    packages = [*_PACKAGES, *(name for name in _FURTHER if len({_versions(one).get(name) for one in every}) > 1)]
    told = {
        run: ", resumed by ".join(dict.fromkeys(_whence(source, packages) for source in of_run))
        for run, of_run in sources.items()
    }
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
    known = not any(word in most for word in ("uncommitted", "untracked", "resumed"))
    notes = [] if signs or known else [f"all runs are by {most}"]
    processors = {source["processor"] for source in every if "processor" in source}
    if len(processors) > 1:
        notes.append(f"the runs are of {len(processors)} kinds of processor, which may round differently")
    return marks, legend, notes


def _sources(run: Run) -> list[Mapping[str, Any]]:
    """Return what a record says of its code as the run began, and as it went on: of that, it holds what was other."""
    return [run.record, *({**run.record, **changed} for changed in run.record.get("resumed") or ())]


def _whence(source: Mapping[str, Any], packages: Sequence[str]) -> str:
    """Return code and packages in words; the working directory's code too, where it is another repository."""
    git = source.get("git") or {}
    code, own = git.get("fedresearch"), git.get("working_directory")
    versions = _versions(source)
    words = [_checkout(code) if code else f"fedresearch {versions.get('fedresearch', '?')}"]
    if own and own != code:
        words.append(f"in a working directory of {_checkout(own)}")
    return ", ".join([*words, *(f"{name} {versions[name]}" for name in packages if name in versions)])


def _checkout(state: Mapping[str, Any]) -> str:
    words = f"commit {state['commit'][:10]}"
    if "dirty" in state and state["dirty"] is None:  # of another owner
        return f"{words}, whose changes are unknown"
    if state.get("diff_sha256"):
        return f"{words} with uncommitted changes ({state['diff_sha256'][:6]})"
    return f"{words} with untracked files" if state.get("dirty") else words


def _versions(source: Mapping[str, Any]) -> dict[str, str]:
    python = {"python": source["python"]} if "python" in source else {}
    return {**python, **(source.get("versions") or {})}


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
