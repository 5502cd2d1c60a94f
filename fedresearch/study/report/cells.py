"""Which keys vary among runs, and the cells that they span; runs of one cell differ in seeds alone, its replicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedresearch.config.schema import GROUPS, counted_hardware, counts, is_seed
from fedresearch.dotted_keys import as_json, leaves
from fedresearch.runs.comparison import format_value
from fedresearch.study.report.load import Run

# Where a group's keys are in the config; the key of its option is the group's name, as on the command line.
_PREFIXES = {"schedule": "optimizer.schedule."} | {
    group: f"{group}." for group in GROUPS if group != "schedule" and counts(group)
}


@dataclass(frozen=True)
class Cell:
    """Runs that are equal but for their seeds.

    Parameters
    ----------
    keys : mapping
        Of the keys that vary among the cells, those that this one has, and its values.
    label : str
        The same in words.
    runs : mapping
        Replicate, such as ``0`` or ``seed=0 partitioner.seed=3``, to its run.
    """

    keys: Mapping[str, Any]
    label: str
    runs: Mapping[str, Run]


@dataclass(frozen=True)
class Study:
    """The cells of a set of runs.

    Parameters
    ----------
    keys : list of str
        The keys that vary, a group's name for its option.
    equal : dict
        Further keys that vary, each with the one of ``keys`` whose values it has in every run.
    cells : list of Cell
        In the order of their values.
    unread : list of Run
        Those of which no config is known: jobs that are missing or refused, and damaged runs.
    repeated : list of Run
        Those that are left out, since another run of the same cell and seed is further, or newer.
    """

    keys: list[str]
    equal: dict[str, str]
    cells: list[Cell]
    unread: list[Run]
    repeated: list[Run]

    def short(self, key: str) -> str:
        """Return a key's last part, or all of it where that is not enough to tell it from the others."""
        last = key.rpartition(".")[2]
        return last if [other.rpartition(".")[2] for other in self.keys].count(last) == 1 else key

    def named(self, key: str) -> str:
        """Return the full name of a key that may be given by its short one."""
        return next((full for full in self.keys if self.short(full) == key), key)

    def others(self, keys: Sequence[str], tuned: Sequence[str]) -> list[str]:
        """Return the keys beside some that tell cells apart; without the tuned ones, if it goes without those."""
        others = [key for key in self.keys if key not in keys]
        untuned = [key for key in others if key not in tuned]
        cells = [cell for cell in self.cells if {*keys} <= cell.keys.keys()]
        places = {as_json([cell.keys.get(key) for key in (*keys, *untuned)]) for cell in cells}
        return untuned if len(places) == len(cells) else others


def study(runs: Sequence[Run]) -> Study:
    """Group runs into cells by the keys that are found to vary."""
    known = [run for run in runs if run.record]
    settings = [settings_of(run.record) for run in known]
    keys, equal = _varying(settings, _typed(known))
    seeds = _varying_seeds(settings)
    result = Study(keys, equal, [], [run for run in runs if not run.record], [])
    cells: dict[str, tuple[dict[str, Any], dict[str, Run]]] = {}
    for run, setting in zip(known, settings, strict=True):
        values = {key: setting[key] for key in keys if key in setting}
        _, replicates = cells.setdefault(as_json(values), (values, {}))
        replicate = _replicate({key: setting[key] for key in seeds if key in setting})
        if replicate in replicates:
            kept, left_out = sorted((replicates[replicate], run), key=_standing, reverse=True)
            replicates[replicate] = kept
            result.repeated.append(left_out)
        else:
            replicates[replicate] = run
    for values, replicates in sorted(cells.values(), key=lambda cell: [_order(cell[0].get(key)) for key in keys]):
        label = ", ".join(f"{result.short(key)}={format_value(value)}" for key, value in values.items())
        ordered = dict(sorted(replicates.items(), key=lambda item: (len(item[0]), item[0])))
        label = label or "all runs"
        alike = sum(cell.label.partition(" #")[0] == label for cell in result.cells)  # such as of 1 and "1"
        result.cells.append(Cell(values, f"{label} #{alike + 1}" if alike else label, ordered))
    return result


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the numbers of a run depend on, flat: options by their group's name, and keys."""
    config = {key: value for key, value in leaves(record["config"]) if counts(key) and key not in _PREFIXES}
    options = {group: option for group, option in record["choices"].items() if group in _PREFIXES}
    hardware = {f"hardware.{key}": value for key, value in counted_hardware(record["config"].get("hardware")).items()}
    return {**options, **config, **hardware}


def _typed(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the keys, or sections, that were typed for any run; groups are none, for their keys are the option's."""
    words = {word.lstrip("+").partition("=")[0] for run in runs for word in run.record.get("overrides", ())}
    return tuple(f"{word}." for word in words - {*GROUPS})


def _varying(settings: Sequence[Mapping[str, Any]], typed: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the keys that vary, but for seeds and what an option brings; apart, those that are equal to another.

    What was typed is brought by no option: it varies also if it does between the runs of two that have it.
    """
    keys: dict[str, str] = {}  # by the values in all runs
    equal = {}
    for key in {key: None for setting in settings for key in setting}:
        group = next((group for group, prefix in _PREFIXES.items() if key.startswith(prefix)), "")
        of_option: dict[Any, set[str]] = {}
        for setting in settings:
            of_option.setdefault(setting.get(group), set()).add(as_json(setting.get(key)))
        having = settings if f"{key}.".startswith(typed) else []
        across = {as_json(setting[key]) for setting in having if key in setting}
        if not is_seed(key) and any(len(values) > 1 for values in (*of_option.values(), across)):
            first = keys.setdefault(as_json([setting.get(key) for setting in settings]), key)
            if first != key:
                equal[key] = first
    return list(keys.values()), equal


def _varying_seeds(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the seeds that vary, but for those that are always the run's own."""
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


def _standing(run: Run) -> tuple[bool, int, str]:
    return run.state == "finished", run.num_rounds, str(run.record.get("started"))


def _order(value: Any) -> tuple[int, float, str]:
    """Sort numbers by size, before everything else by its text; a key that is not there comes first."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, format_value(value))
