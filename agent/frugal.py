"""Memory that is used once is given back: the C library's arenas and what a big baseline left behind. glibc only.

Refuses nothing and breaks nothing elsewhere: where the C library has no such calls, they are left out.
"""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_ARENAS = 1
"""An arena for each thread keeps its own free memory; the agent's threads hardly ever allocate at once."""
_MMAP_FROM_BYTES = 128 * 1024
"""Bigger blocks go back to the kernel when they are freed; left alone, glibc raises this by itself."""


def few_arenas() -> None:
    """Before threads are made: let them share one arena."""
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    if call is not None:
        call(_M_ARENA_MAX, _ARENAS)
        call(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)


def give_back() -> None:
    """After something big was let go (30 to 60 ms with a full heap): free it, and hand free pages to the kernel."""
    gc.collect()
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if call is not None:
        call(0)
