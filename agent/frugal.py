"""Memory that is used once is given back: the C library's arenas, what a big baseline left behind, code that ran at the start.

Refuses nothing and breaks nothing elsewhere: where the C library or the kernel has no such calls, they are left out.
Relies on: glibc's mallopt(3) and malloc_trim(3), madvise(2), /proc/self/smaps.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_ARENAS = 1
"""An arena for each thread keeps its own free memory; the agent's threads hardly ever allocate at once."""
_MMAP_FROM_BYTES = 128 * 1024
"""Bigger blocks go back to the kernel when they are freed; left alone, glibc raises this by itself."""
_MADV_DONTNEED = 4
_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) \S+ \S+ (?P<inode>\d+)"
    r"(?:(?!^[0-9a-f]+-).*\n)*?^Anonymous: +(?P<own_kib>\d+) kB$",
    re.MULTILINE,
)


_SETTLED_S, _TIDIED_S = 45.0, 3600.0
"""So long after a baseline was put in force memory is given back once more, and then so often."""


class Thrift:
    """When memory is given back. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def adopted(self, now_s: float) -> None:
        """A baseline was put in force: what reading it took is free, and what it brings is not over yet."""
        give_back()
        self._next_s = now_s + _SETTLED_S

    def passing(self, now_s: float) -> None:
        """A pass over everything begins: tidy up, where it is time."""
        if now_s >= self._next_s:
            self._next_s = now_s + _TIDIED_S
            give_back()
            let_go_of_code()


def few_arenas() -> None:
    """Before threads are made: let them share one arena."""
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    if call is not None:
        call(_M_ARENA_MAX, _ARENAS)
        call(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)


def give_back() -> None:
    """After something big was let go (30 to 100 ms with a full heap): free it, and hand free pages to the kernel.

    What is alive is then out of the collector's sight until this is called again: a baseline of 20,000 files is a tenth of a
    second of looking that would come at any time, in which nothing is healed.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if call is not None:
        call(0)


def let_go_of_code() -> None:
    """Unmap the pages of programs and libraries (a few ms): what runs again is mapped again, from the page cache.

    A start runs code of four times the size that a node at rest runs. Only what nobody can have written to is let go:
    mapped from a file, read-only, without one page of this process's own (relocations are such pages).
    """
    call = getattr(ctypes.CDLL(None), "madvise", None)
    if call is None:
        return
    try:
        listed = Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for found in _MAPPING.finditer(listed):
        if found["inode"] == "0" or "w" in found["rights"] or found["own_kib"] != "0":
            continue
        start, end = int(found["start"], 16), int(found["end"], 16)
        call(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
