"""How many cores a run may use."""

import os

import joblib

# What a sweep whose jobs run at once sets for each of them.
_SHARE = "FEDRESEARCH_NUM_CORES"


def num_cores() -> int:
    """Return the number of cores that this process may use: of its affinity, of its cgroup's quota, of its share.

    A quota is rounded up. Without any limit, these are the cores of the machine.
    """
    cores: int = joblib.cpu_count()
    return min(cores, int(os.environ.get(_SHARE, cores)))


def share_cores(num_jobs: int) -> int:
    """Let the processes that this one starts have a share of its cores each, and return the share: at least one.

    Parameters
    ----------
    num_jobs : int
        How many of them run at once.
    """
    share = max(1, num_cores() // num_jobs)
    os.environ[_SHARE] = str(share)
    return share
