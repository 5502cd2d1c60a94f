"""The settings of a process that determine the order of sums: its threads, and a GPU's algorithms."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic
from threadpoolctl import threadpool_limits


def limit_threads(num_threads: int) -> None:
    """Set the number of threads of torch and of NumPy's BLAS, on which the order of their sums depends."""
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads, user_api="blas")


def be_deterministic(*, tf32: bool = False) -> None:
    """Use GPU algorithms that give the same bits each time, in full float32 or TF32; torch warns if it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


@contextmanager
def restored_settings() -> Iterator[None]:
    """Restore at the end what ``be_deterministic`` sets in torch."""
    backends, deterministic = torch.backends, torch.utils.deterministic
    algorithms = _algorithms()
    fills = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cudnn = backends.cudnn.benchmark, backends.cudnn.allow_tf32
    matmul = backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        if _algorithms() != algorithms:  # torch imports its compiler to set them, which takes seconds
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        backends.cudnn.benchmark, backends.cudnn.allow_tf32 = cudnn
        backends.cuda.matmul.allow_tf32 = matmul


def _algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
