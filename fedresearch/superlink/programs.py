"""Flower's programs, guarded against other users of the machine: ``python -m fedresearch.superlink.programs NAME ...``.

A SuperLink reads its token from the file that follows its name.
"""

import sys
from pathlib import Path

from fedresearch.federation.flower import run_superexec, run_superlink

if __name__ == "__main__":
    sys.argv.pop(0)
    if sys.argv[0] == "flower-superlink":
        run_superlink(Path(sys.argv.pop(1)).read_text(encoding="utf-8"))
    else:
        run_superexec()
