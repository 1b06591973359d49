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
# What was alive then is not looked at by the collections in between, and is by the next.
knot = Knot()
knot.itself = knot
seen = weakref.ref(knot)
give_back()
del knot
gc.collect()
print(seen() is not None)
give_back()
print(seen() is None)
"""


def test_what_was_let_go_goes_back_to_the_kernel_in_spite_of_what_was_kept() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    freed, *collected = shown.split()
    assert int(freed) > 20_000_000  # of 40 MB
    assert collected == ["True"] * 3


_AGENT = """
import sys
import agent.running
from agent.firewall.nft import render_lockdown
from agent.frugal import let_go_of_code
from agent.probes import sections

def mapped_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssFile")).split()[1])

sections()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
before = mapped_kib()
let_go_of_code()
print(before - mapped_kib())
# Everything that was let go is there when it is wanted: C code of four kinds, and code that starts threads.
import hashlib, ssl, threading
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from agent.firewall.library import context
key = Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"x"), b"x")
ssl.create_default_context()
done = []
thread = threading.Thread(target=lambda: done.append(hashlib.sha256(b"x").hexdigest()))
thread.start()
thread.join()
context().cmd("list tables")
from types import SimpleNamespace
print(len(render_lockdown(SimpleNamespace(controller=(), fenced=(), grants=()))) > 500, len(done))
"""


_IMPORTED = """
import agent.running
from agent.probes import sections

sections()
print(next(line for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous")).split()[1])
"""


def test_all_that_is_imported_to_stay_takes_half_of_what_is_promised_for_the_whole() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert int(shown) < 34_000  # KiB; with aiohttp it was 36,000 (38,000 where nothing is compiled)


def _agent() -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", _AGENT], capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()


def test_code_that_ran_at_the_start_is_unmapped_and_comes_back_when_it_is_wanted() -> None:
    _, freed_kib, worked = _agent()
    assert int(freed_kib) > 8_000  # of some 25,000
    assert worked == "True 1"


def test_what_only_other_commands_and_rare_work_need_is_not_in_the_process_that_stays() -> None:
    loaded = _agent()[0].split()
    assert {"agent", "h11", "cryptography"} <= set(loaded)
    assert not {"aiohttp", "click", "rich", "tuf", "securesystemslib", "urllib3", "requests"} & set(loaded)
