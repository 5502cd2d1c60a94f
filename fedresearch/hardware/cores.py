"""The number of cores that a run may use."""

import os

import joblib

# A sweep with concurrent jobs sets this variable for each of them.
_SHARE = "FEDRESEARCH_NUM_CORES"


def num_cores() -> int:
    """Return the number of cores that this process may use: the least of its affinity, its quota and its share.

    A cgroup's quota is rounded up. Without any limit, this is the number of cores of the machine.
    """
    cores: int = joblib.cpu_count()
    return min(cores, int(os.environ.get(_SHARE, cores)))


def share_cores(num_jobs: int) -> int:
    """Limit each process that this one starts to a share of its cores, and return the share: at least one.

    Parameters
    ----------
    num_jobs : int
        The number of processes that run at once.
    """
    share = max(1, num_cores() // num_jobs)
    os.environ[_SHARE] = str(share)
    return share
