"""Run the experiment that standard input holds, as :class:`fedresearch.submission.Submission` writes it.

Its last line is the peak memory of the largest of its processes, in bytes.
"""

import sys

from fedresearch.run import run_experiment
from fedresearch.runs.provenance import peak_memory_bytes
from fedresearch.submission import Submission

if __name__ == "__main__":
    run_experiment(**vars(Submission.loads(sys.stdin.read())))
    print(peak_memory_bytes())
