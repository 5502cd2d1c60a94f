"""The settings of a process that determine the order of sums: its threads, and a GPU's algorithms."""

import os

import torch
import torch.utils.deterministic
from threadpoolctl import threadpool_limits


def limit_threads(num_threads: int) -> None:
    """Set the number of threads of torch and of NumPy's BLAS, on which the order of their sums depends."""
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads, user_api="blas")


def be_deterministic() -> None:
    """Use GPU algorithms that give the same bits each time, in full float32; torch warns if it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
