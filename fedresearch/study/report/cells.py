"""Cells: groups of runs with the same values of all keys that vary. Runs of one cell differ in seeds alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedresearch.config.options import group_of
from fedresearch.config.schema import GROUPS, counted_hardware, counts, is_seed
from fedresearch.dotted_keys import as_json, leaves
from fedresearch.runs.columns import Declared, is_share
from fedresearch.runs.comparison import format_value
from fedresearch.runs.labels import Names, column_label, metric_labels
from fedresearch.study.report.load import LoadedRun

_COUNTED = [group for group in GROUPS if counts(group)]  # an option's key is its group's name


@dataclass(frozen=True)
class Cell:
    """Runs that differ in seeds alone.

    Parameters
    ----------
    keys : mapping
        The varying keys that this cell has, and its values.
    label : str
        The same in words, unique among the cells.
    runs : mapping
        Replicate, such as ``0`` or ``seed=0 partitioner.seed=3``, to its run.
    """

    keys: Mapping[str, Any]
    label: str
    runs: Mapping[str, LoadedRun]


@dataclass(frozen=True)
class Study:
    """The cells of a set of runs.

    Parameters
    ----------
    keys : list of str
        The keys that vary. The key of an option is its group's name.
    equal : dict
        Further keys that vary, each to the one of ``keys`` that has the same value in every run.
    cells : list of Cell
        In the order of their values.
    unread : list of LoadedRun
        Runs without a known config: missing or refused jobs, and damaged runs.
    repeated : list of LoadedRun
        Runs that are left out because another run of the same cell and seed has more rounds, or is newer.
    """

    keys: list[str]
    equal: dict[str, str]
    cells: list[Cell]
    unread: list[LoadedRun]
    repeated: list[LoadedRun]

    @property
    def runs(self) -> Iterator[LoadedRun]:
        """All runs: those of the cells, and those in none."""
        for cell in self.cells:
            yield from cell.runs.values()
        yield from self.unread
        yield from self.repeated

    @cached_property
    def declared(self) -> Declared:
        """What the records of all runs declare of their columns."""
        return {name: column for run in self.runs for name, column in run.declared.items()}

    def column_label(self, column: str, names: Names) -> str:
        """Return what tables call a column, such as ``Test accuracy (%)``."""
        return column_label(column, self.declared, self._metric_labels, names)

    @cached_property
    def _metric_labels(self) -> dict[str, str]:
        return {name: text for run in self.runs for name, text in metric_labels(run.record.get("config", {})).items()}

    def scale(self, column: str) -> int:
        """Return what tables and figures multiply a column by: 100 for a share."""
        return 100 if is_share(column, self.declared) else 1

    def short_name(self, key: str) -> str:
        """Return a key's last part, or the whole key where several keys end in that part."""
        last = key.rpartition(".")[2]
        return last if [other.rpartition(".")[2] for other in self.keys].count(last) == 1 else key

    def full_name(self, key: str) -> str:
        """Return the full name of a key that may be given by its short name."""
        return next((full for full in self.keys if self.short_name(full) == key), key)

    def describe(self, values: Mapping[str, Any]) -> str:
        """Return keys by their short names, with their values."""
        return ", ".join(f"{self.short_name(key)}={format_value(value)}" for key, value in values.items())

    def short_label(self, cell: Cell) -> str:
        """Return a cell's first keys that distinguish it from all others; its label where only a missing key does."""
        others, told = [other for other in self.cells if other is not cell], {}
        for key, value in cell.keys.items():
            same = [other for other in others if key in other.keys and as_json(other.keys[key]) == as_json(value)]
            if len(same) < len(others):
                others, told[key] = same, value
        return cell.label if others or not told else self.describe(told)

    def other_keys(self, keys: Sequence[str], tuned: Sequence[str]) -> list[str]:
        """Return the keys that distinguish cells besides some; without the tuned ones where these are not needed."""
        others = [key for key in self.keys if key not in keys]
        untuned = [key for key in others if key not in tuned]
        cells = [cell for cell in self.cells if {*keys} <= cell.keys.keys()]
        places = {as_json([cell.keys.get(key) for key in (*keys, *untuned)]) for cell in cells}
        return untuned if len(places) == len(cells) else others


def group_runs(runs: Sequence[LoadedRun]) -> Study:
    """Group runs into cells by the keys that vary among them."""
    known = [run for run in runs if run.record]
    settings = [settings_of(run.record) for run in known]
    keys, equal = _varying(settings, _typed(known))
    seeds = _varying_seeds(settings)
    result = Study(keys, equal, [], [run for run in runs if not run.record], [])
    cells: dict[str, tuple[dict[str, Any], dict[str, LoadedRun]]] = {}
    for run, setting in zip(known, settings, strict=True):
        values = {key: setting[key] for key in keys if key in setting}
        _, replicates = cells.setdefault(as_json(values), (values, {}))
        replicate = _replicate({key: setting[key] for key in seeds if key in setting})
        if replicate in replicates:
            kept, left_out = sorted((replicates[replicate], run), key=_progress, reverse=True)
            replicates[replicate] = kept
            result.repeated.append(left_out)
        else:
            replicates[replicate] = run
    for values, replicates in sorted(cells.values(), key=lambda cell: [sort_key(cell[0].get(key)) for key in keys]):
        label = result.describe(values) or "all runs"
        ordered = dict(sorted(replicates.items(), key=lambda item: (len(item[0]), item[0])))
        # The values 1 and "1" have the same text.
        num_same = sum(cell.label.partition(" #")[0] == label for cell in result.cells)
        result.cells.append(Cell(values, f"{label} #{num_same + 1}" if num_same else label, ordered))
    return result


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings that a run's numbers depend on: options by their group's name, and config keys."""
    config = {key: value for key, value in leaves(record["config"]) if counts(key) and key not in _COUNTED}
    options = {group: option for group, option in record["choices"].items() if group in _COUNTED}
    hardware = {f"hardware.{key}": value for key, value in counted_hardware(record["config"].get("hardware")).items()}
    return {**options, **config, **hardware}


def _typed(runs: Sequence[LoadedRun]) -> tuple[str, ...]:
    """Return the prefixes of the keys and sections that were typed for any run, without those of groups."""
    words = {word.lstrip("+").partition("=")[0] for run in runs for word in run.record.get("overrides", ())}
    return tuple(f"{word}." for word in words - {*GROUPS})


def _varying(settings: Sequence[Mapping[str, Any]], typed: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the keys that vary, without seeds; separately, keys that always have the values of another.

    A key of an option varies only if it varies among the runs with that option. A key that was typed varies also if it
    differs between runs with different options.
    """
    keys: dict[str, str] = {}  # values in all runs to the first key that has them
    equal = {}
    for key in {key: None for setting in settings for key in setting}:
        group = group_of(key) if "." in key else ""
        within_option: dict[Any, set[str]] = {}
        for setting in settings:
            within_option.setdefault(setting.get(group), set()).add(as_json(setting.get(key)))
        compared = settings if f"{key}.".startswith(typed) else []
        across_options = {as_json(setting[key]) for setting in compared if key in setting}
        if not is_seed(key) and any(len(values) > 1 for values in (*within_option.values(), across_options)):
            first = keys.setdefault(as_json([setting.get(key) for setting in settings]), key)
            if first != key:
                equal[key] = first
    return list(keys.values()), equal


def _varying_seeds(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the seeds that vary, without those that always equal the run's own seed."""
    seeds = {key: None for setting in settings for key in setting if is_seed(key)}
    return [
        key
        for key in seeds
        if len({as_json(setting.get(key)) for setting in settings}) > 1
        and (key == "seed" or any(setting.get(key) != setting.get("seed") for setting in settings))
    ] or ["seed"]


def _replicate(seeds: Mapping[str, Any]) -> str:
    if list(seeds) == ["seed"]:
        return format_value(seeds["seed"])
    return " ".join(f"{key}={format_value(value)}" for key, value in seeds.items())


def _progress(run: LoadedRun) -> tuple[bool, int, str]:
    return run.state == "finished", run.num_rounds, str(run.record.get("started"))


def sort_key(value: Any) -> tuple[int, float, str]:
    """Sort a missing key first, then numbers by size, then everything else by its text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, format_value(value))
