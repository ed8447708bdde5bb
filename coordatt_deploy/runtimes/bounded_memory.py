"""Bound what this process may map beside what it has, where the system can: a file that asks for more is refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

if sys.platform != "win32":
    import resource

MEMORY_GB: Final = 3.0  # beside what is there; an image of a megapixel through a large backbone takes a tenth


@contextmanager
def bounded_memory(gigabytes: float = MEMORY_GB) -> Iterator[None]:
    """Let the block map so much memory at most; beyond it Python raises MemoryError."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound_memory(int(gigabytes * 1e9))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def bound_memory(memory: int) -> None:
    """Let this process map *memory* bytes more than it does, and no more than it may."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123 - no file of ours
            wanted = int(stream.read().split()[0]) * resource.getpagesize() + memory
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
