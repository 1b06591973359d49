"""What differs between two signed baselines, section by section, for people to read before it happens. Pure.

Tables in lists are compared as wholes: a rule that changed shows as the one taken out and the one put in, so that order and
merging never hide anything. Relies on baselines being flat and complete when they are signed (DESIGN.md, 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from contract.baseline import parse_baseline
from controller.rollout_records import SectionChange

MAX_LINES: Final = 60
MAX_LINE_CHARS: Final = 300


def changes(before: bytes, after: bytes) -> list[SectionChange]:
    """Return the changes from one baseline (empty: none) to another. Raises Rejected as `parse_baseline` does."""
    old = _sections(before) if before else {}
    new = _sections(after)
    out = []
    for name in sorted({*old, *new}):
        lines = list(_lines(old.get(name), new.get(name)))
        if name not in old:
            out.append(SectionChange(section=name, change="added", lines=_cut(lines)))
        elif name not in new:
            out.append(SectionChange(section=name, change="removed", lines=_cut(lines)))
        elif lines:
            out.append(SectionChange(section=name, change="changed", lines=_cut(lines)))
    return out


def _sections(content: bytes) -> dict[str, object]:
    parsed = parse_baseline(content)
    head = msgspec.to_builtins(parsed.head)
    kept = {key: value for key, value in head.items() if key not in ("name", "version", "summary")}
    return {"baseline": kept, **parsed.sections}


def _lines(before: object, after: object, path: str = "") -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, Mapping | None) and isinstance(after, Mapping | None):
        old, new = before or {}, after or {}
        for key in sorted({*old, *new}):
            yield from _lines(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list | None) and isinstance(after, list | None):
        old_texts, new_texts = (list(map(_text, each or [])) for each in (before, after))
        taken, put = set(old_texts) - set(new_texts), set(new_texts) - set(old_texts)
        yield from (f"- {path}: {text}" for text in dict.fromkeys(old_texts) if text in taken)
        yield from (f"+ {path}: {text}" for text in dict.fromkeys(new_texts) if text in put)
        if not taken and not put:
            yield f"  {path}: in another order"
    else:
        yield f"  {path}: {_text(before)} -> {_text(after)}"


def _text(value: object) -> str:
    if value is None:
        return "(not set)"
    text = msgspec.json.encode(value, order="sorted").decode()
    return text if len(text) <= MAX_LINE_CHARS else text[: MAX_LINE_CHARS - 1] + "…"


def _cut(lines: list[str]) -> list[str]:
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more"]
