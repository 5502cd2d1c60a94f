"""How many threads a process computes with."""

import torch
from threadpoolctl import threadpool_limits


def limit_threads(num_threads: int) -> None:
    """Let torch, and NumPy's BLAS, form their sums on so many threads: with another number they form others."""
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads, user_api="blas")
