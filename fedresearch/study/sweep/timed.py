"""Run the experiment on standard input, as :class:`fedresearch.experiment.request.RunRequest` writes it.

The last line on standard output is the peak memory of the largest of its processes, in bytes.
"""

import sys

from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.run import run_experiment
from fedresearch.runs.provenance import peak_memory_bytes


def main() -> None:
    """Run it."""
    run_experiment(RunRequest.loads(sys.stdin.read()))
    print(peak_memory_bytes())
