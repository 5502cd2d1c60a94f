"""The help text: the groups and their options, read from ``conf/``, and examples."""

from argparse import ArgumentParser
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

# Next to the package in a checkout, inside it if installed from a wheel.
CONF = next(path for path in (Path(__file__).parents[2] / "conf", Path(__file__).parents[1] / "conf") if path.is_dir())

_TEMPLATE = """\
fedresearch: federated-learning experiments, composed from config groups.

    fedresearch [group=option ...] [key=value ...]    run an experiment; with -m, a sweep
    fedresearch report DIR...                         make tables, figures and a page of runs
    fedresearch sweep status|preflight ...            the state of a sweep, or the cost of one
    fedresearch tune SWEEP_DIR                        choose the best value of a key for each cell
    fedresearch compare RUN_DIR OTHER_RUN_DIR         show where two runs differ
    fedresearch reproduce RUN_DIR                     run a finished run again and compare
    fedresearch app PATH                              run any Flower app

Each has its own --help. `python -m fedresearch.main` is the same command.

Groups and their options (* is the default):
{groups}
Keys and their defaults (for keys of the chosen options: --cfg job, and comments in conf/GROUP/OPTION.yaml):
{keys}
Examples:
  fedresearch strategy=fedavg partitioner.alpha=0.1 federation.num_rounds=50
  fedresearch dataset=mnist model=mlp_2nn partitioner=iid optimizer.lr=0.05 tracker.mode=offline
  fedresearch 'channel=[clip,topk]' channel.topk.share=0.01
  fedresearch -m partitioner.alpha=0.1,1,10 seed=0,1,2
  fedresearch resume=RUN_DIR federation.num_rounds=100
  fedresearch sweep preflight partitioner.alpha=0.1,1,10 seed=0,1,2
  fedresearch sweep status SWEEP_DIR
  fedresearch compare RUN_DIR OTHER_RUN_DIR
  fedresearch reproduce RUN_DIR hardware=workers
  fedresearch report SWEEP_DIR --baseline strategy=fedavg --targets 0.9

  --cfg job --resolve    print the composed config instead of running it
  --info                 show where each part of the config comes from
  -m, --multirun         run every combination of comma-separated values
  --config-dir DIR       add the options in DIR/GROUP/OPTION.yaml
  --hydra-help           show Hydra's own flags, such as shell completion
"""


def help_text(arguments: Sequence[str] = ()) -> str:
    """Return the help text.

    Parameters
    ----------
    arguments : sequence of str
        The command line; its ``--config-dir DIR`` may add options.
    """
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    folders = [CONF, *parser.parse_known_args(list(arguments))[0].config_dir]
    config = (CONF / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(config) if line.startswith("seed:"))
    groups = ""
    for line in config[:start]:
        group, _, default = line.partition("#")[0].removeprefix("  - ").strip().partition(": ")
        defaults = default.strip("[]").split(",")
        if (CONF / group).is_dir() and default:
            groups += f"\n  {group}{' (a list)' * default.startswith('[')}\n"
            for path in sorted(
                (path for folder in folders for path in (folder / group).glob("[!_]*.yaml")), key=attrgetter("stem")
            ):
                groups += f"  {'*' if path.stem in defaults else ' '} {path.stem:<20} {_description(path)}\n"
    keys = "".join(f"  {line}\n" if line else "\n" for line in config[start : config.index("hydra:")])
    return _TEMPLATE.format(groups=groups, keys=keys)


def _description(path: Path) -> str:
    """Return the comment that a file begins with, or an empty text."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    first = next(lines, "")
    return first.removeprefix("# ") if first.startswith("# ") else ""
