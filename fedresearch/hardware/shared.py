"""Objects in memory that several processes map."""

import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

_ALIGNMENT = 64


class SharedMemory:
    """Anonymous memory that several processes map; the system frees it with the last of them.

    Parameters
    ----------
    sizes : list of int
        Sizes of its parts in bytes.

    Attributes
    ----------
    fd : int
        Its file descriptor, for :func:`map_shared`.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.fd = sizes, _anonymous_file()
        os.ftruncate(self.fd, _bounds(sizes)[-1])

    def close(self) -> None:
        """Release the memory; processes that have mapped it keep it."""
        os.close(self.fd)


class SharedObject(SharedMemory):
    """An object, pickled once into such memory.

    Parameters
    ----------
    content : Any
        The object. Processes that map it do not copy its NumPy arrays.
    """

    def __init__(self, content: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        super().__init__([part.nbytes for part in parts])
        *starts, total = _bounds(self.sizes)
        with mmap.mmap(self.fd, total) as memory:
            for start, part in zip(starts, parts, strict=True):
                memory[start : start + part.nbytes] = part


def map_shared(fd: int, sizes: Sequence[int], *, for_all: bool = False) -> list[memoryview]:
    """Map the parts of shared memory, and close its descriptor; what one writes only it sees, or all."""
    *starts, total = _bounds(sizes)
    memory = memoryview(mmap.mmap(fd, total, access=mmap.ACCESS_WRITE if for_all else mmap.ACCESS_COPY))
    os.close(fd)
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def load_shared(parts: Sequence[memoryview]) -> Any:
    """Return a new copy of the object; its NumPy arrays are views of the memory."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _bounds(sizes: Sequence[int]) -> list[int]:
    bounds = [0]
    for size in sizes:
        bounds.append(-(-(bounds[-1] + size) // _ALIGNMENT) * _ALIGNMENT)
    return [*bounds[:-1], max(bounds[-1], _ALIGNMENT)]  # empty memory cannot be mapped


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedresearch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
