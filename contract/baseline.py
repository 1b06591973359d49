"""Baselines: the signed TOML document that says what a class of node must look like.

This module knows the head (`[baseline]`) and that everything else is one table for each probe. It does not
know the probes: a section's type is the probe's, and a section that no probe claims is refused by the
agent, which has them. It verifies no signature; `contract.trust` does, before anything here is called on
bytes from outside.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from contract.messages import Mode, Name, Text
from contract.toml import Path, convert_toml, line_of, parse_toml, refuse_key

__all__ = ["Baseline", "Head", "Offline", "SectionBase", "line_of", "parse_baseline", "refuse", "section"]

T = TypeVar("T")

CODE = "baseline"
MAX_SECTIONS = 64
_SECTION_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)


class Offline(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[baseline.offline]`: what the node does by itself while the controller cannot be reached."""

    isolate_after_s: Annotated[float, Meta(gt=0, le=366 * 86400)] | None = None
    """Seconds without a verified answer of the controller until posture `isolated`; absent: never."""


class RepairLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[baseline.repair]`: what the repairs of one section may cost within an hour; past it they wait. Not for the firewall."""

    processor_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    """Seconds of processor time."""
    written_mb: Annotated[float, Meta(gt=0, le=65536)] = 64.0
    """Million bytes written, the agent's own records of the repair among them."""


class Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[baseline]`: which baseline this is, and what holds for all of its sections."""

    name: Name
    version: Annotated[int, Meta(ge=1, le=2**53)]
    """Only ever rises; a node refuses a version lower than the highest it has accepted of this name."""
    summary: Text
    mode: Mode = "enforce"
    """The mode of every section that does not name its own."""
    offline: Offline = Offline()
    repair: RepairLimits = RepairLimits()


class SectionBase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section's type. Cross-field faults are raised as ValueError in `__post_init__`."""

    mode: Mode | None = None
    """`observe` reports only, `enforce` repairs too; absent: the mode of the head."""


class Baseline(Struct, frozen=True, kw_only=True):
    """A parsed baseline. Its sections are raw tables until a probe's type has been laid over them."""

    head: Head
    sections: dict[str, dict[str, object]]
    text: str
    """What was parsed, for the line numbers of later errors."""
    file: str
    """Name for error messages."""


def parse_baseline(untrusted: bytes, *, file: str = "baseline") -> Baseline:
    """Parse a baseline's bytes; `file` is only for error messages.

    Raises Rejected: `baseline.too-large` (4 MiB, 2,048 characters a line, 64 sections), `baseline.syntax`,
    `baseline.key` (with file, line, key and what was expected).
    """
    data, text = parse_toml(untrusted, file=file, code=CODE)
    if "baseline" not in data:
        raise refuse_key(
            ("baseline",), "expected a table: this key is required", text=text, file=file, code=CODE
        )
    head = convert_toml(data.pop("baseline"), Head, text=text, file=file, code=CODE, at=("baseline",))
    sections: dict[str, dict[str, object]] = {}
    for name, content in data.items():
        at = (name,)
        if _SECTION_NAME.fullmatch(name) is None:
            raise refuse_key(at, "expected a section name: a-z, 0-9 and '_'", text=text, file=file, code=CODE)
        if len(sections) == MAX_SECTIONS:
            raise refuse_key(at, f"expected at most {MAX_SECTIONS} sections", text=text, file=file, code=CODE)
        sections[name] = convert_toml(content, dict[str, object], text=text, file=file, code=CODE, at=at)
    return Baseline(head=head, sections=sections, text=text, file=file)


def section(baseline: Baseline, name: str, kind: type[T]) -> T:
    """Return one section strictly as `kind`. The section must be there (KeyError otherwise: a fault of ours).

    Raises Rejected `baseline.key`.
    """
    return convert_toml(
        baseline.sections[name], kind, text=baseline.text, file=baseline.file, code=CODE, at=(name,)
    )


def refuse(baseline: Baseline, at: Path, expected: str) -> Exception:
    """Return the Rejected `baseline.key` for the key at path `at`, with its file and line; for the caller to raise."""
    return refuse_key(at, expected, text=baseline.text, file=baseline.file, code=CODE)
