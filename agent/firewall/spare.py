"""Under which name each of our tables stands: its own, or a spare one where another process owns that. Pure but for the draw.

A table that carries the flag `owner` cannot be changed, deleted or made anew by anybody but the process that made it, for as
long as that lives; not even by one who may do everything else. So nobody is fought over a name: what is held is left to
its holder, and ours is made under a name with a random end, which nobody could have taken before. A name is only given up when it is
held, and never taken back while the agent runs: whoever let go of it may take hold again.

All that is decided, rendered, compared and reported speaks of our tables by their own names; `agent.netfilter`, through which all of
it goes, puts in the names in force and takes them out again, and nothing else knows them.
Refuses nothing. Relies on: commands of a batch beginning at the start of a line and the rest being indented (`agent.firewall.tables`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable

from agent.firewall.compare import Object
from agent.firewall.match import CUT_TABLE, FAST_TABLE, GUARD_TABLE, TABLE, is_ours
from agent.firewall.netlink import FAMILIES, OWNED, Table

Place = tuple[str, str]
"""Family and name."""
_OWN_NAMES = frozenset({TABLE, CUT_TABLE, GUARD_TABLE, FAST_TABLE})
_COMMAND = re.compile(rf"(?m)^((?:[a-z]+ )*)({'|'.join(FAMILIES.values())}) ({TABLE}[A-Za-z0-9_.-]*)")
_SUFFIX_BYTES = 8
_DRAWN = re.compile(rf"[0-9a-f]{{{2 * _SUFFIX_BYTES}}}")


class Names:
    """The names in force in one network namespace; at first each table's own."""

    def __init__(self, draw: Callable[[], str] = lambda: secrets.token_hex(_SUFFIX_BYTES)) -> None:
        self._draw = draw
        self._spare: dict[Place, str] = {}

    def leave(self, standing: Iterable[Table]) -> bool:
        """Give up each name in force that another process owns; tell whether there was one."""
        given_up = [place for each in held(standing) if (place := self.meant((each.family, each.name)))]
        for family, name in given_up:
            self._spare[family, name] = f"{name}_{self._draw()}"
        return bool(given_up)

    def find(self, standing: Iterable[Table]) -> None:
        """Take the spare names under which an agent has put our tables, where they stand: for who only looks."""
        for each in standing:
            name, _, drawn = each.name.rpartition("_")
            if name in _OWN_NAMES and _DRAWN.fullmatch(drawn) and not each.flags & OWNED:
                self._spare[each.family, name] = each.name

    def real(self, place: Place) -> Place:
        """Return what the kernel calls one of our tables."""
        return place[0], self._spare.get(place, place[1])

    def meant(self, real: Place) -> Place | None:
        """Return which of our tables stands, or would stand, under a name; None where none does."""
        for place, name in self._spare.items():
            if (place[0], name) == real:
                return place
        return real if real[1] in _OWN_NAMES and real not in self._spare else None

    def text(self, text: str) -> str:
        """Return a batch or command of ours with the names in force."""
        if not self._spare:
            return text
        return _COMMAND.sub(lambda found: f"{found[1]}{' '.join(self.real((found[2], found[3])))}", text)

    def objects(self, listed: list[Object], place: Place) -> list[Object]:
        """Give what was listed of one table the table's own name."""
        name = self.real(place)[1]
        for entry in listed if name != place[1] else ():
            for kind, body in entry.items():
                key = "name" if kind == "table" else "table"
                if isinstance(body, dict) and body.get(key) == name:
                    body[key] = place[1]
        return listed


def held(standing: Iterable[Table]) -> list[Table]:
    """Return the tables under names that are ours and that another process owns. None of ours is ever owned."""
    return [each for each in standing if each.flags & OWNED and is_ours(each.name)]
