"""What the order of sums depends on in a process: its threads, and a GPU's choice of algorithms."""

import os

import torch
from threadpoolctl import threadpool_limits


def limit_threads(num_threads: int) -> None:
    """Let torch, and NumPy's BLAS, form their sums on so many threads: with another number they form others."""
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads, user_api="blas")


def be_deterministic() -> None:
    """Let a GPU use algorithms that give the same bits each time, in full float32; torch warns where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
