"""The help text: the groups and their options, read from ``conf/``, and examples."""

from pathlib import Path

# Beside the package in a checkout, inside it when installed from a wheel.
CONF = next(path for path in (Path(__file__).parents[1] / "conf", Path(__file__).parent / "conf") if path.is_dir())

_TEMPLATE = """\
fedresearch: federated-learning experiments, composed from config groups.

    python -m fedresearch.main [group=option ...] [key=value ...]

Groups and their options (* is the default):
{groups}
Keys, with their defaults (a group's own keys: --cfg job):
{keys}
Examples:
  python -m fedresearch.main strategy=fedavg partitioner.alpha=0.1 federation.num_rounds=50
  python -m fedresearch.main dataset=mnist model=mlp_2nn partitioner=iid optimizer.lr=0.05 tracker.mode=offline
  python -m fedresearch.main -m partitioner.alpha=0.1,1,10 seed=0,1,2

  --cfg job --resolve    print the composed config instead of running it
  --info                 show where each part of it comes from
  -m, --multirun         run every combination of comma-separated values
  --config-dir DIR       find more options in DIR/GROUP/OPTION.yaml
  --hydra-help           Hydra's own flags, shell completion among them
"""


def usage() -> str:
    """Return the help text."""
    config = (CONF / "config.yaml").read_text().splitlines()
    groups = ""
    for line in config[config.index("defaults:") + 1 :]:
        if not line.startswith("  - "):
            break
        group, _, default = line.removeprefix("  - ").partition("#")[0].strip().partition(": ")
        if not default:
            continue
        groups += f"\n  {group}\n"
        for path in sorted((CONF / group).glob("[!_]*.yaml")):
            mark = "*" if path.stem == default else " "
            groups += f"  {mark} {path.stem:<20} {_description(path)}\n"
    start = next(i for i, line in enumerate(config) if line.startswith("seed:"))
    end = config.index("hydra:")
    keys = "".join(f"  {line}\n" if line else "\n" for line in config[start:end])
    return _TEMPLATE.format(groups=groups, keys=keys)


def _description(path: Path) -> str:
    comments = (line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    return next(comments).removeprefix("# ")
