"""Two listings of nftables, made comparable and compared. Pure.

Handles, counters and the order of set elements differ between two loads of one text; everything else may not. What
packets put into a set, and how long the kernel still keeps an element, is no part of the comparison.
Relies on: libnftables' JSON (libnftables-json(5)); a listing that is no such JSON raises ValueError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from agent.firewall.limit import SEEN
from agent.firewall.tables import Table

Canonical = Mapping[str, tuple[str, ...]]
"""Objects by name ("inet ringfence chain input"), each as lines: its head, then its rules in order or its elements sorted."""
Object = dict[str, object]

ABSENT = "absent"
_PRESENT = "present"


class Change(NamedTuple):
    """One object that differs, with the first place where it does."""

    key: str
    wanted: str
    found: str


def parsed(listing: str) -> list[Object]:
    """Return the objects of a JSON listing, each `{kind: {...}}`. Raises ValueError."""
    document = msgspec.json.decode(listing, type=dict[str, list[Object]])
    return document["nftables"]


def canonical(objects: list[Object]) -> dict[str, tuple[str, ...]]:
    """Return the comparable form of parsed objects. Raises ValueError for a shape that nftables does not print."""
    out: dict[str, list[str]] = {}
    for entry in objects:
        for kind, value in entry.items():
            if kind == "metainfo":
                continue
            body = _without_volatile(value)
            if not isinstance(body, dict):
                raise ValueError(f"listing: {kind} is no object")  # noqa: TRY004  (bad input, not a bug of the caller)
            if kind == "rule":
                out.setdefault(_key(body, "chain", body.get("chain")), []).append(_line(body.get("expr")))
                if body.get("comment"):
                    out[_key(body, "chain", body.get("chain"))].append(_line(body["comment"]))
                continue
            if kind == "flowtable" or (kind == "chain" and body.get("family") == "netdev"):
                # Printed by some versions only, and no other namespace has them; interfaces are compared by themselves.
                body.pop("dev", None)
            elements = body.pop("elem", None)
            lines = out.setdefault(_key(body, kind, body.get("name")), [])
            lines.insert(0, _line(body))
            if isinstance(elements, list) and not str(body.get("name")).startswith(SEEN):
                lines += sorted(_line(_untimed(each)) for each in elements)
    return {key: tuple(lines) for key, lines in out.items()}


def counted(objects: list[Object]) -> dict[str, int]:
    """Return bytes by element, of sets whose elements are counted."""
    out: dict[str, int] = {}
    for entry in objects:
        body = entry.get("set")
        elements = body.get("elem") if isinstance(body, dict) else None
        for each in elements if isinstance(elements, list) else ():
            element = each.get("elem") if isinstance(each, dict) else None
            counter = element.get("counter") if isinstance(element, dict) else None
            if isinstance(counter, dict):
                out[str(element["val"])] = int(counter.get("bytes", 0))  # type: ignore[index]
    return out


def filled(
    wanted: Canonical,
    found: Canonical,
    tables: Iterable[Table],
    fading: Collection[str] = (),
    untold: Collection[str] = (),
) -> Canonical:
    """Return `wanted`, which was made of rules without what their live sets hold, with that put in.

    An element of `fading`, which the kernel drops about now, is wanted exactly where it is found; so is all that a
    set of `untold` (by name) holds, of which nobody knows yet what it should.
    """
    unsure = {_element(text) for text in fading}
    out = dict(wanted)
    for table in tables:
        for each in table.sets:
            key = f"{table.place} set {each.name}"
            if not each.live or key not in out:
                continue
            if each.name in untold:
                out[key] = (out[key][0], *found.get(key, ())[1:])
                continue
            lines = {_element(text) for text in each.elements}
            lines = (lines - unsure) | (unsure & set(found.get(key, ())))
            out[key] = (out[key][0], *sorted(lines))
    return out


def _element(text: str) -> str:
    """Return an element as `canonical` shows it: an address, or several things joined by " . "."""
    parts = [int(part) if part.isdigit() else part for part in text.split(" . ")]
    return _line(parts[0] if len(parts) == 1 else {"concat": parts})


def changes(wanted: Canonical, found: Canonical) -> list[Change]:
    """Return every object that differs. A table that is missing, asleep or uncalled for counts once."""
    out: list[Change] = []
    whole: set[str] = set()
    for key in sorted(wanted.keys() | found.keys(), key=lambda each: (" table " not in each, each)):
        place = " ".join(key.split(" ")[:2])
        if place in whole:
            continue
        before, now = wanted.get(key), found.get(key)
        if before == now:
            continue
        if " table " in key:
            whole.add(place)
        if before is None or now is None:
            out.append(
                Change(key, ABSENT if before is None else _PRESENT, ABSENT if now is None else _shown(now))
            )
        else:
            out.append(_first_difference(key, before, now))
    return out


def _first_difference(key: str, wanted: tuple[str, ...], found: tuple[str, ...]) -> Change:
    if wanted[0] != found[0]:
        return Change(key, wanted[0], found[0])
    if " set " in key or " map " in key:
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        return Change(key, _listed("elements", missing), _listed("elements", extra))
    for number, (before, now) in enumerate(zip(wanted, found, strict=False)):
        if before != now:
            return Change(key, f"rule {number}: {before}", f"rule {number}: {now}")
    at = min(len(wanted), len(found))
    return Change(
        key,
        f"{len(wanted) - 1} rules" + (f", rule {at}: {wanted[at]}" if at < len(wanted) else ""),
        f"{len(found) - 1} rules" + (f", rule {at}: {found[at]}" if at < len(found) else ""),
    )


def _listed(what: str, lines: list[str]) -> str:
    more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
    return f"{what} {', '.join(lines[:8])}{more}" if lines else f"no such {what}"


def _shown(lines: tuple[str, ...]) -> str:
    return "; ".join(lines[:3])


def _key(body: Object, kind: str, name: object) -> str:
    """Family and table first, so that all of one table has one beginning."""
    if kind == "table":
        return f"{body.get('family')} {name} table {name}"
    return f"{body.get('family')} {body.get('table')} {kind} {name}"


def _line(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _untimed(element: object) -> object:
    """Return the bare value of an element that differs from others only in its time."""
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        inside = element["elem"]
        if inside.keys() <= {"val", "timeout"}:
            return inside.get("val")
    return element


def _without_volatile(value: object) -> object:
    if isinstance(value, list):
        return [_without_volatile(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "counter" in value and isinstance(value["counter"], dict):
        return {"counter": None} | {key: each for key, each in value.items() if key != "counter"}
    return {key: _without_volatile(each) for key, each in value.items() if key not in _VOLATILE}


_VOLATILE = frozenset({"handle", "packets", "bytes", "used", "expires"})
