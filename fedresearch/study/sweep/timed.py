"""Run the experiment that standard input holds, as :class:`fedresearch.experiment.request.RunRequest` writes it.

Its last line is the peak memory of the largest of its processes, in bytes.
"""

import sys

from fedresearch.experiment.request import RunRequest
from fedresearch.experiment.run import run_experiment
from fedresearch.runs.provenance import peak_memory_bytes

if __name__ == "__main__":
    run_experiment(RunRequest.loads(sys.stdin.read()))
    print(peak_memory_bytes())
