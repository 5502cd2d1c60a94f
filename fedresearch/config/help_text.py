"""The help text: the groups and their options, read from ``conf/``, and examples."""

from argparse import ArgumentParser
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

# Beside the package in a checkout, inside it when installed from a wheel.
CONF = next(path for path in (Path(__file__).parents[2] / "conf", Path(__file__).parents[1] / "conf") if path.is_dir())

_TEMPLATE = """\
fedresearch: federated-learning experiments, composed from config groups.

    fedresearch [group=option ...] [key=value ...]    run an experiment; with -m, a sweep
    fedresearch report DIR...                         tables, figures and a page of runs
    fedresearch sweep status|preflight ...            how a sweep stands, or what one would take
    fedresearch tune SWEEP_DIR                        the best value of a key for each cell
    fedresearch compare RUN_DIR OTHER_RUN_DIR         what two runs differ in
    fedresearch reproduce RUN_DIR                     run a finished run again, and compare
    fedresearch app PATH                              run any Flower app

Each of these explains itself with --help. `python -m fedresearch.main` is the same command.

Groups and their options (* is the default):
{groups}
Keys, with their defaults (those of the chosen options: --cfg job; comments in conf/GROUP/OPTION.yaml):
{keys}
Examples:
  fedresearch strategy=fedavg partitioner.alpha=0.1 federation.num_rounds=50
  fedresearch dataset=mnist model=mlp_2nn partitioner=iid optimizer.lr=0.05 tracker.mode=offline
  fedresearch -m partitioner.alpha=0.1,1,10 seed=0,1,2
  fedresearch resume=RUN_DIR federation.num_rounds=100
  fedresearch sweep preflight partitioner.alpha=0.1,1,10 seed=0,1,2
  fedresearch sweep status SWEEP_DIR
  fedresearch compare RUN_DIR OTHER_RUN_DIR
  fedresearch reproduce RUN_DIR hardware=workers
  fedresearch report SWEEP_DIR --baseline strategy=fedavg --targets 0.9

  --cfg job --resolve    print the composed config instead of running it
  --info                 show where each part of it comes from
  -m, --multirun         run every combination of comma-separated values
  --config-dir DIR       find more options in DIR/GROUP/OPTION.yaml
  --hydra-help           Hydra's own flags, shell completion among them
"""


def help_text(arguments: Sequence[str] = ()) -> str:
    """Return the help text.

    Parameters
    ----------
    arguments : sequence of str
        The command line, whose ``--config-dir DIR`` may bring further options.
    """
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    folders = [CONF, *parser.parse_known_args(list(arguments))[0].config_dir]
    config = (CONF / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(config) if line.startswith("seed:"))
    groups = ""
    for line in config[:start]:
        group, _, default = line.partition("#")[0].removeprefix("  - ").strip().partition(": ")
        if (CONF / group).is_dir() and default:
            groups += f"\n  {group}\n"
            for path in sorted(
                (path for folder in folders for path in (folder / group).glob("[!_]*.yaml")), key=attrgetter("stem")
            ):
                groups += f"  {'*' if path.stem == default else ' '} {path.stem:<20} {_description(path)}\n"
    keys = "".join(f"  {line}\n" if line else "\n" for line in config[start : config.index("hydra:")])
    return _TEMPLATE.format(groups=groups, keys=keys)


def _description(path: Path) -> str:
    """Return a file's first comment, or nothing where it begins with something else."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    first = next(lines, "")
    return first.removeprefix("# ") if first.startswith("# ") else ""
