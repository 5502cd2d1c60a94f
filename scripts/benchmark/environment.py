"""The environment of pfl, FedJAX and BlazeFL, of the benchmark only: ``python -m scripts.benchmark --peers-env``."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import torch

from scripts.benchmark.workloads import PEERS

FOLDER = Path("~/.cache/fedresearch/benchmark-peers").expanduser()
PYTHON = FOLDER / "bin" / "python"
_PACKAGES = [
    f"torch=={torch.__version__.partition('+')[0]}",
    "torchvision",
    "pfl==0.6.0",
    "fedjax==0.0.17",
    "jax==0.5.3",  # of later ones, FedJAX uses what is gone
    "jaxlib==0.5.3",
    "blazefl==2.0.3; python_version >= '3.12'",  # 3.0 needs 3.14
    "tqdm",  # which BlazeFL forgets
]
_VERSIONS = """
import importlib.metadata, json, sys
found = {of.metadata["Name"].lower(): of.version for of in importlib.metadata.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""


def make(python: str) -> None:
    """Make the environment anew, with an interpreter."""
    subprocess.run([python, "-m", "venv", "--clear", str(FOLDER)], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "-qq", *_PACKAGES], check=True)
    print(f"{FOLDER}: {', '.join(f'{name} {version}' for name, version in versions().items())}", file=sys.stderr)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    if not PYTHON.exists():
        return {}
    command = [str(PYTHON), "-c", _VERSIONS, *PEERS]
    found: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found
