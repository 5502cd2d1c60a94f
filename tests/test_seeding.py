"""Seeds are a function of seed, purpose, round and partition, and of nothing else."""

import itertools
import subprocess
import sys
from typing import get_args

from fedresearch.seeding import Purpose, derive_seed


def test_different_places_have_different_seeds():
    purposes = get_args(Purpose)
    places = list(itertools.product((0, 1, 11), purposes, ((), (0,), (1,), (1, 1), (11,), (1, 11), (11, 1))))
    seeds = {derive_seed(seed, purpose, *where) for seed, purpose, where in places}
    assert len(seeds) == len(places)
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_same_in_every_process():
    code = "from fedresearch.seeding import derive_seed; print(derive_seed(3, 'batches', 2, 1))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": h}, capture_output=True, text=True, check=True
        ).stdout
        for h in ("0", "1")
    }
    assert printed == {f"{derive_seed(3, 'batches', 2, 1)}\n"}
