"""What a probe's test module gives to the test that runs over every probe (`test_every_probe`).

Each `tests/agent/probes/test_<section>.py` has `case(folder)`, a context manager that yields a Case built on real
parts: a machine that is as its section wants it, and ways to make it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import probes
from agent.probes import Probe, SectionBase, Surroundings
from contract.baseline import parse_baseline

HEAD = """\
[baseline]
name = "case"
version = 1
summary = "for a test"

"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One probe on one machine."""

    toml: str
    """The section's text; it begins with `[<section>]`."""
    around: Surroundings
    spoil: Callable[[], None]
    """Make the machine differ in a way that this probe can see, and mend unless `mends` is False."""
    blind: Callable[[], None]
    """Make looking itself fail."""
    state: Callable[[], object]
    """What the machine is, as a witness other than the probe sees it; what `repair` and `undo` may change."""
    trace: Callable[[], object]
    """As `state`, and so fine that a write of the same value shows."""
    run: Callable[[Callable[[], Any]], Any] = lambda work: work()
    """Calls the probe where it has to run: on a thread inside a namespace, for instance."""
    mends: bool = True
    undoes: bool = True
    """False where what was repaired cannot be put back: a process that was killed."""
    heirs: tuple[str, ...] = ()
    """Other texts of the section that keep shut, in their own way, what this one has mended."""


def section_of(name: str, toml: str) -> SectionBase:
    """Return the typed section of a TOML text, through the agent's own way in."""
    return probes.parse_sections(parse_baseline((HEAD + toml).encode(), file="case.toml"))[name]


def probe_of(name: str, toml: str, around: Surroundings) -> Probe[Any]:
    """Return a probe over a TOML text."""
    return probes.sections()[name].Probe(section_of(name, toml), around)


def tree_state(root: Path) -> dict[str, tuple[object, ...]]:
    """Return kind, mode, owner and content of everything below a folder."""
    return {path: facts[:-1] for path, facts in tree_trace(root).items()}


def tree_trace(root: Path) -> dict[str, tuple[object, ...]]:
    """Return the same and the times of the last change, in nanoseconds."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        times = (facts.st_mtime_ns, facts.st_ctime_ns)
        found[str(path)] = (oct(facts.st_mode), facts.st_uid, facts.st_gid, content, times)
    return found
