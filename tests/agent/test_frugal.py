"""Memory given back: a process of its own, the kernel's figures as the witness."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os
from agent.frugal import few_arenas, give_back

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

few_arenas()
small = [bytes(2000) for _ in range(20000)]
kept = small[::100]
full = rss()
del small
give_back()
print(full - rss())
class Knot:
    pass
import gc, weakref
gc.disable()
knot = Knot()
knot.itself = knot
seen = weakref.ref(knot)
del knot
give_back()
print(seen() is None)
"""


def test_what_was_let_go_goes_back_to_the_kernel_in_spite_of_what_was_kept() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    freed, collected = shown.split()
    assert int(freed) > 20_000_000  # of 40 MB
    assert collected == "True"
