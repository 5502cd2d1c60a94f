"""Objects in memory that several processes map."""

import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

_ALIGNMENT = 64


class SharedObject:
    """An object, pickled once into anonymous memory, which the system frees with its last process.

    Parameters
    ----------
    content : Any
        The object. Processes that map it do not copy its NumPy arrays.

    Attributes
    ----------
    fd : int
        The memory's file descriptor, for :func:`map_shared`.
    sizes : list of int
        Sizes of its parts in bytes.
    """

    def __init__(self, content: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        self.sizes = [part.nbytes for part in parts]
        self.fd = _anonymous_file()
        *starts, total = _bounds(self.sizes)
        os.ftruncate(self.fd, total)
        with mmap.mmap(self.fd, total) as memory:
            for start, part in zip(starts, parts, strict=True):
                memory[start : start + part.nbytes] = part

    def close(self) -> None:
        """Release the memory; processes that have mapped it keep it."""
        os.close(self.fd)


def map_shared(fd: int, sizes: Sequence[int]) -> list[memoryview]:
    """Map the parts of shared memory, and close its descriptor; writing into a part changes it in this process only."""
    *starts, total = _bounds(sizes)
    memory = memoryview(mmap.mmap(fd, total, access=mmap.ACCESS_COPY))
    os.close(fd)
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def load_shared(parts: Sequence[memoryview]) -> Any:
    """Return a new copy of the object; its NumPy arrays are views of the memory."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _bounds(sizes: Sequence[int]) -> list[int]:
    bounds = [0]
    for size in sizes:
        bounds.append(-(-(bounds[-1] + size) // _ALIGNMENT) * _ALIGNMENT)
    return bounds


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedresearch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
