"""Drafts of baseline sections from a running node, for a person to cut down. One file for each section; its name is the section's.

A module exposes `draft(around)`; device sections come from `agent.learn_devices`; those that need to be told more (ima, models) have a command of their own instead. Modules are
found by listing this folder. What a node has now is not what it should have: a draft vouches for nothing, says `# DECIDE` where a
person has to, and observes only. Never learned: contents, secrets, and digests of files that not everybody may read.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

from agent import learn_devices
from agent.probes import Surroundings
from contract.tomltext import literal

LEARNED = "found here by `learn`: say why it is needed, or strike it out"
"""The reason of everything that was learned; nobody should sign it."""


class Draft(NamedTuple):
    """A section as TOML, and what is not in it and why."""

    text: str
    left_out: list[str]


class Learner(Protocol):
    """What a file in this folder exposes."""

    def draft(self, around: Surroundings) -> Draft:
        """Return the section as this node would fulfil it. Raises OSError where it cannot be looked at."""


class _Device(NamedTuple):
    """A device section, drafted by `agent.learn_devices`."""

    name: str

    def draft(self, around: Surroundings) -> Draft:
        """Return the section. Raises OSError."""
        decide = "# DECIDE: what is plugged in by chance, or by somebody, is here too\n"
        return Draft(decide + learn_devices.section_draft(around.host, self.name), [])


def learners() -> dict[str, Learner]:
    """Return every module with a `draft`, by section name."""
    found: dict[str, Learner] = {name: _Device(name) for name in learn_devices.SECTIONS}
    for each in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{each.name}")
        if hasattr(module, "draft"):
            found[each.name] = cast(Learner, module)
    return dict(sorted(found.items()))


def section(name: str, keys: Mapping[str, object] | None = None, *, decide: str = "") -> str:
    """Return the table of a section with its own keys."""
    return _table(f"[{name}]", keys or {}, decide)


def entry(name: str, keys: Mapping[str, object], *, decide: str = "") -> str:
    """Return one of a list of tables; keys that are None are left out, and a reason is added."""
    return _table(f"[[{name}]]", {**keys, "reason": LEARNED}, decide)


def table(name: str, keys: Mapping[str, object], *, decide: str = "") -> str:
    """Return a table with a name of its own below a section."""
    return _table(f"[{name}]", keys, decide)


def _table(head: str, keys: Mapping[str, object], decide: str) -> str:
    lines = [f"# DECIDE: {decide}"] if decide else []
    lines += [head, *(f"{key} = {literal(value)}" for key, value in keys.items() if value is not None)]
    return "\n".join(lines) + "\n"
