"""Draft of `[services]`: which units were enabled or masked here, and which start files no package brought."""

from __future__ import annotations

from agent import units
from agent.learning import LEARNED, Draft, entry, section
from agent.probes import Surroundings, services
from agent.units import LOCAL, USERS_LOCAL, VENDOR

_UNIT_STATES = {"enabled": "enabled", "masked": "masked"}


def draft(around: Surroundings) -> Draft:
    """Return the units by state and the unknown files by digest. Raises OSError."""
    pieces = [each for folder in (*LOCAL, *VENDOR) for each in units.pieces(around.host.tree, (folder,))]
    states = units.states(pieces)
    text = [section("services", {"unknown": "report", "vendor": "check"})]
    users = [
        each
        for folder in USERS_LOCAL
        if folder != units.XDG_USERS
        for each in units.pieces(around.host.tree, (folder,))
    ]
    links = [each for each in (*pieces, *users) if each.local and each.kind in ("pull", "alias", "mask")]
    named = {piece.unit for piece in links}
    for unit in sorted(named):
        state = _UNIT_STATES.get(states.get(unit, ""), "any")
        text.append(entry("services.unit", {"name": unit, "state": state}))
    left_out = []
    listed = [services.Unit(name=name, reason=LEARNED) for name in sorted(named)]
    for each in services.Probe(services.Section(unit=listed), around).unlisted():
        sha256 = each.found.removeprefix("sha256 ")
        if sha256 == each.found:
            left_out.append(f"services: {each.key}: {each.found}")
            continue
        decide = "no package brought this: who did?"
        text.append(entry("services.file", {"path": each.key, "sha256": sha256}, decide=decide))
    return Draft("\n".join(text), left_out)
