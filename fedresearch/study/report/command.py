"""The command ``fedresearch report DIR...``: tables, figures and a page of runs in any state."""

import gc
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedresearch.config.verbs import VerbParser, reporting
from fedresearch.errors import InputError, printing
from fedresearch.experiment.stopping import no_signal_lost

if TYPE_CHECKING:
    from fedresearch.study.report.build import Report

_DESCRIPTION = """\
Make tables, figures and a page from the runs in some directories, finished or
not. The command finds the keys that vary; runs that differ in seeds alone are
replicates. It reads only run directories, and needs no tracker or network.
"""
_EPILOG = """\
Files in --out: report.html (everything in one file), report.md, each table as
.csv (all digits), .tex (booktabs, graphicx) and .html (to paste into Word), each
figure as .png and .pdf, with its data as .csv and a .py that redraws it.

examples:
  fedresearch report outputs/sweep_DIGEST
  fedresearch report outputs/sweep_DIGEST --baseline strategy=fedavg --targets 0.9,0.97
  fedresearch report outputs --select best_val --rows strategy --cols partitioner.alpha
  fedresearch report outputs/sweep_DIGEST --live
"""


def main(words: Sequence[str]) -> None:
    """Run the command on its arguments."""
    parser = VerbParser("report", _DESCRIPTION, _EPILOG)
    parser.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="a directory of runs, sweeps or both")
    parser.add_argument("--metric", help="a column of metrics.jsonl (default: eval/accuracy, or another usual metric)")
    parser.add_argument(
        "--select",
        default="last",
        metavar="RULE",
        help="the rule that gives each run one number: last, best_val (the best round on the clients' validation "
        "data), mean_last:K, or best_test, which selects on the data that it reports (default: last)",
    )
    parser.add_argument("--targets", default="", metavar="A,B", help="values of the metric to reach")
    parser.add_argument("--baseline", default="", metavar="KEY=VALUE", help="the cells that others are compared with")
    parser.add_argument(
        "--tuned", default="", metavar="KEY,KEY", help="keys chosen for each cell, which may differ from the baseline's"
    )
    parser.add_argument(
        "--x",
        choices=["rounds", "bytes", "steps", "seconds"],
        default="rounds",
        help="the axis of curves and speed-ups (default: rounds)",
    )
    parser.add_argument("--rows", metavar="KEY,KEY", help="the keys down in the table of means, with --cols")
    parser.add_argument("--cols", metavar="KEY,KEY", help="the keys across (default: arms down, panels across)")
    parser.add_argument("--arms", default="", metavar="KEY,KEY", help="the keys compared in each panel of curves")
    parser.add_argument("--facet", default="", metavar="KEY,KEY", help="the keys of which each value has a panel")
    parser.add_argument(
        "--highlight", default="", metavar="A,B", help="arms in colour, by their labels; others are grey"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=TEXT",
        help="what to call a key or a column; KEY=VALUE=TEXT: what to call a value, such as strategy=fedavg=FedAvg; "
        "several times if need be",
    )
    parser.add_argument(
        "--style", choices=["neurips", "icml", "ieee"], default="", help="the venue whose columns figures fit in"
    )
    parser.add_argument("--out", type=Path, help="the folder to write (default: report, in the first DIR)")
    parser.add_argument(
        "--live",
        action="store_true",
        help="write nothing: serve the page, without figures, to this machine's browsers, and follow the runs",
    )
    parser.add_argument("--port", type=int, metavar="PORT", help="of --live (default: any that is free)")
    gc.disable()  # saves a seventh of the time for 1,000 runs: nearly all objects live to the end
    with printing(), reporting():
        _report(parser.parse_args(words))


def _report(arguments: Namespace) -> None:
    if bool(arguments.rows) != bool(arguments.cols):
        raise InputError("--rows and --cols go together; try --rows strategy --cols partitioner.alpha")
    if arguments.port is not None and not arguments.live:
        raise InputError("--port goes with --live; try --live --port 8000")
    if arguments.live and arguments.out:
        raise InputError("--live writes nothing; leave out --out, or --live")
    if arguments.live and arguments.style:
        raise InputError("--style is of figures, which --live leaves out; leave out --style, or --live")
    arguments.targets = [*dict.fromkeys(_number(word) for word in _words(arguments.targets))]
    if arguments.live:
        from fedresearch.study.report.live import serve

        serve(arguments.directories, partial(_build_so_far, arguments), arguments.port or 0)
        return
    from fedresearch.study.report.files import write

    out = arguments.out or arguments.directories[0] / "report"
    with no_signal_lost():  # matplotlib's C++ raises another error in its place
        text = write(_build(arguments), out)
    print(text)
    print(out / "report.html")


def _build(arguments: Namespace) -> "Report":
    # Imported only now: matplotlib, pandas and SciPy take seconds.
    from fedresearch.study.report.build import build_report
    from fedresearch.study.report.cells import group_runs
    from fedresearch.study.report.load import load
    from fedresearch.study.report.question import pose_question

    study = group_runs(load(arguments.directories))
    question = pose_question(
        study,
        select=arguments.select,
        metric=arguments.metric,
        targets=arguments.targets,
        baseline=arguments.baseline,
        tuned=_words(arguments.tuned),
        x_axis=arguments.x,
        grid=(_words(arguments.rows), _words(arguments.cols)) if arguments.rows else None,
        facet=_words(arguments.facet),
        arms=_words(arguments.arms),
        highlight=_words(arguments.highlight),
        labels=arguments.label,
        style=arguments.style,
    )
    return build_report(study, question, with_figures=not arguments.live)


def _build_so_far(arguments: Namespace) -> "Report":
    """Leave out the options that name keys, values and arms until all of these are there, if runs are to come."""
    try:
        return _build(arguments)
    except InputError as error:
        from fedresearch.study.report.load import load

        naming = ("baseline", "tuned", "rows", "cols", "facet", "arms", "highlight", "label")
        typed = [name for name in naming if getattr(arguments, name)]
        if not typed or not any(run.may_grow for run in load(arguments.directories)):
            raise
        report = _build(Namespace(**{**vars(arguments), **dict.fromkeys(typed, "")}))
        left_out = ", ".join(f"--{name}" for name in typed)
        why = str(error).partition(";")[0]
        return replace(report, notes=[f"until more runs have begun, this leaves out {left_out}: {why}", *report.notes])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--targets must be numbers, got {word}; try --targets 0.9,0.97")
    return number
