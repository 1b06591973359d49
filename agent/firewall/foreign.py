"""What the chains of other programs do to packets, judged from a JSON listing. Pure.

A foreign chain can add drops but cannot undo ours, unless it rewrites packets on their way. Statements are sorted
by a list of harmless ones; what is not on it counts as rewriting, so a statement that nobody knew of is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from agent.firewall.compare import Object

Effect = Literal["accepts", "drops", "rewrites"]

_HARMLESS = frozenset(
    {
        "match",
        "counter",
        "log",
        "limit",
        "quota",
        "jump",
        "goto",
        "return",
        "continue",
        "ct count",
        "set",
        "last",
    }
)
OTHER = "other"
_DROPS = frozenset({"drop", "reject"})


@dataclass(frozen=True, kw_only=True)
class ForeignChain:
    """One chain of a table that is not ours, with what it may do to a packet."""

    family: str
    table: str
    chain: str
    hook: str = ""
    """Empty for a chain that only others jump to."""
    priority: int | None = None
    effects: frozenset[Effect]
    rewrites: frozenset[str] = frozenset()
    """How it rewrites: "masquerade", "mark", "dnat ADDRESS", or "other" for all else."""

    def describe(self) -> str:
        """Return one line for people."""
        where = f" at {self.hook} {self.priority}" if self.hook else ""
        return f"{' and '.join(sorted(self.effects)) or 'only looks'}{where}"


def foreign_chains(
    objects: list[Object],
    own_tables: Collection[tuple[str, str]],
    leads: Mapping[tuple[str, str, int], str] = MappingProxyType({}),
) -> list[ForeignChain]:
    """Return every chain outside `own_tables`, (family, name) each, that accepts, drops or rewrites.

    `leads`: by family, table and handle, where a rule's xtables DNAT leads (`agent.firewall.xtables`).
    """
    effects: dict[tuple[str, str, str], set[Effect]] = {}
    rewrites: dict[tuple[str, str, str], set[str]] = {}
    heads: dict[tuple[str, str, str], tuple[str, int | None]] = {}
    for entry in objects:
        for kind, value in entry.items():
            if kind not in {"chain", "rule"} or not isinstance(value, dict):
                continue
            family, table = str(value.get("family")), str(value.get("table"))
            if (family, table) in own_tables:
                continue
            key = (family, table, str(value.get("name" if kind == "chain" else "chain")))
            found = effects.setdefault(key, set())
            if kind == "rule":
                lead = leads.get((family, table, value.get("handle", 0)), "?")
                done, how = _of_rule(value.get("expr"), lead)
                found.update(done)
                rewrites.setdefault(key, set()).update(how)
            elif value.get("hook"):
                priority = value.get("prio")
                heads[key] = (str(value["hook"]), priority if isinstance(priority, int) else None)
                if value.get("policy") == "drop":
                    found.add("drops")
    return [
        ForeignChain(
            family=key[0],
            table=key[1],
            chain=key[2],
            hook=heads.get(key, ("", None))[0],
            priority=heads.get(key, ("", None))[1],
            effects=frozenset(found),
            rewrites=frozenset(rewrites.get(key, ())),
        )
        for key, found in sorted(effects.items())
        if found
    ]


def unreadable(family: str, table: str) -> ForeignChain:
    """Return what stands for a table that cannot be listed: assumed to do its worst."""
    return ForeignChain(
        family=family, table=table, chain="*", effects=frozenset({"rewrites"}), rewrites=frozenset({OTHER})
    )


def _of_rule(statements: object, lead: str) -> tuple[set[Effect], set[str]]:
    out: set[Effect] = set()
    how: set[str] = set()
    for statement in statements if isinstance(statements, list) else [statements]:
        for name, body in statement.items() if isinstance(statement, dict) else [(str(statement), None)]:
            found = _of_statement(name, body)
            out |= found
            if "rewrites" in found:
                how.add(_how(name, body, lead))
    return out, how


def _of_statement(name: str, body: object) -> set[Effect]:
    if name in _HARMLESS:
        return set()
    if name == "accept":
        return {"accepts"}
    if name in _DROPS:
        return {"drops"}
    if name == "vmap":
        # What the map holds is not followed: each verdict it may give is assumed.
        return {"accepts", "drops"}
    if name == "xt" and isinstance(body, dict):
        if body.get("type") == "match" or body.get("name") in {"LOG", "NFLOG"}:
            return set()
        if body.get("type") == "target" and body.get("name") == "REJECT":
            return {"drops"}
    return {"rewrites"}


def _how(name: str, body: object, lead: str) -> str:
    about = body if isinstance(body, dict) else {}
    if name == "xt" and about.get("type") == "target":
        target = about.get("name")
        return {"MASQUERADE": "masquerade", "MARK": "mark", "DNAT": f"dnat {lead}"}.get(str(target), OTHER)
    if name == "dnat":
        address = about.get("addr")
        return f"dnat {address if isinstance(address, str) else '?'}"
    if name == "mangle" and about.get("key") == {"meta": {"key": "mark"}}:
        return "mark"
    return "masquerade" if name == "masquerade" else OTHER
