"""From a write to a listed file to its drift, among 5,000 listed files; beside it what a look at all of them costs."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from pathlib import Path

from agent.host import Host
from agent.probes import Surroundings
from agent.probes import files as files_probe
from agent.probes.files import File, Section
from bench.figures import Figure, figure, percentile

FILES = 5000
_FOLDERS = 100
_PAUSE_S = 1.0
"""Long enough for the section to be quiet again: one that is touched all the time is woken every two seconds."""


def run(*, quick: bool) -> list[Figure]:
    """Change 40 files (10 when `quick`), one after the other, and wait for each drift."""
    times = 10 if quick else 40
    print(f"  {times} changes among {FILES} files", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        section = Section(file=[_made(root, number) for number in range(FILES)])
        host, woken = Host(root=root), threading.Event()
        host.wake = lambda section: woken.set()
        probe = files_probe.Probe(section, Surroundings(host=host))
        try:
            probe.observe(time.time())
            time.sleep(_PAUSE_S)
            probe.observe(time.time())
            began = time.perf_counter()
            assert probe.observe(time.time()) == []
            look_ms = (time.perf_counter() - began) * 1000
            took_ms = [_changed(root, section, probe, woken, number) for number in range(times)]
        finally:
            host.close()
    return [
        figure("look at 5,000 unchanged files", look_ms, "ms"),
        figure("file change to drift among 5,000, p50", percentile(took_ms, 50), "ms", "look", look_ms),
        figure("file change to drift among 5,000, p99", percentile(took_ms, 99), "ms", "look", look_ms),
    ]


def _made(root: Path, number: int) -> File:
    path = root / f"etc/{number % _FOLDERS}/{number}.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"setting = %d\n" % number
    path.write_bytes(content)
    path.chmod(0o644)
    digest = hashlib.sha256(content).hexdigest()
    return File(path=f"/{path.relative_to(root)}", sha256=digest, reason="bench")


def _changed(
    root: Path, section: Section, probe: files_probe.Probe, woken: threading.Event, number: int
) -> float:
    path = root / section.file[number * 37 % FILES].path.lstrip("/")
    before = path.read_bytes()
    woken.clear()
    began = time.perf_counter()
    path.write_bytes(b"changed")
    while not woken.wait(1.0) or not probe.observe(time.time()):
        woken.clear()
    took_ms = (time.perf_counter() - began) * 1000
    path.write_bytes(before)
    while probe.observe(time.time()):
        pass
    time.sleep(_PAUSE_S)
    return took_ms
