"""What the chains of other programs do to packets, judged from a JSON listing. Pure.

A foreign chain can add drops but cannot undo ours, unless it rewrites packets on their way. Statements are sorted
by a list of harmless ones; what is not on it counts as rewriting, so a statement that nobody knew of is told.

Rewriting is of two sorts (docs/adr/0025-foreign-rewriting.md). Some of it our rules see through: a flow that NAT leads
elsewhere is judged by where it really goes, and neither a packet's class nor a packet mark is asked for. All else may lead past
them (a port rewritten before our chain and back behind it, our own connection mark, a way out that is chosen after we have looked): its
rules are named by their handles, so that they can be taken out and nothing else of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
ABSENT = "absent"
LEADS_PAST = "absent: it can lead packets past our rules"
"""What is wanted of a chain with rules that are taken out."""
_SEEN_THROUGH = frozenset(
    {"masquerade", "snat", "redirect", "dnat", "mark", "maxseg", "dscp", "priority", "secmark", "checksum"}
    | {"track", "trace"}
)
"""`notrack` and zones leave a packet without our mark, and RELATED is not let in: a helper opens nothing."""
EVERY = "*"
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
    """How it rewrites: "masquerade", "mark", "dnat ADDRESS", ..., or "other" for all else."""
    past: tuple[int, ...] = ()
    """Handles of the rules that may lead past ours; of a table that cannot be read (chain "*") there are none to name."""

    @property
    def wanted(self) -> str:
        """Return what is wanted of it, for a drift: whether it may be left standing depends on this."""
        return LEADS_PAST if self.past or self.chain == EVERY else ABSENT

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
    past: dict[tuple[str, str, str], list[int]] = {}
    heads: dict[tuple[str, str, str], tuple[str, int | None]] = {}
    rerouting = _rerouting(objects)
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
                if _leads_past(how, rerouting=key in rerouting):
                    past.setdefault(key, []).append(int(value.get("handle", 0)))
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
            past=tuple(past.get(key, ())),
        )
        for key, found in sorted(effects.items())
        if found
    ]


def unreadable(family: str, table: str) -> ForeignChain:
    """Return what stands for a table that cannot be listed: assumed to do its worst."""
    return ForeignChain(
        family=family, table=table, chain=EVERY, effects=frozenset({"rewrites"}), rewrites=frozenset({OTHER})
    )


def _leads_past(how: set[str], *, rerouting: bool) -> bool:
    kinds = {each.partition(" ")[0] for each in how}
    return bool(kinds - _SEEN_THROUGH) or (rerouting and "mark" in kinds)


def _rerouting(objects: list[Object]) -> set[tuple[str, str, str]]:
    """Return the chains after which the kernel asks for the way again (type `route`): there a mark chooses another way out
    than the one that our rules see. With what they lead to; a map's targets are not followed: then it is the whole table.
    """
    chains: dict[tuple[str, str], set[str]] = {}
    leads: dict[tuple[str, str, str], set[str] | None] = {}
    found: list[tuple[str, str, str]] = []
    for kind, body in _bodies(objects):
        table = (str(body.get("family")), str(body.get("table")))
        if kind == "chain":
            name = str(body.get("name"))
            chains.setdefault(table, set()).add(name)
            if body.get("type") == "route":
                found.append((*table, name))
        else:
            key = (*table, str(body.get("chain")))
            leads[key] = _joined(leads.get(key, set()), _targets(body.get("expr")))
    reached: set[tuple[str, str, str]] = set()
    while found:
        key = found.pop()
        if key not in reached:
            reached.add(key)
            further = leads.get(key, set())
            names = chains.get(key[:2], set()) if further is None else further
            found += [(*key[:2], name) for name in names]
    return reached


def _bodies(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for entry in objects:
        for kind, body in entry.items():
            if kind in {"chain", "rule"} and isinstance(body, dict):
                yield kind, body


def _joined(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    return None if one is None or other is None else one | other


def _targets(statements: object) -> set[str] | None:
    """Return the chains that a rule leads to; None where a map says which."""
    out: set[str] = set()
    for statement in statements if isinstance(statements, list) else []:
        for name, body in statement.items() if isinstance(statement, dict) else []:
            if name == "vmap":
                return None
            if name in {"jump", "goto"} and isinstance(body, dict):
                out.add(str(body.get("target")))
    return out


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
        if body.get("type") == "match" or body.get("name") in _XT_LOOKS:
            return set()
        if body.get("type") == "target" and body.get("name") == "REJECT":
            return {"drops"}
    return {"rewrites"}


_XT_LOOKS = frozenset({"LOG", "NFLOG", "AUDIT", "TRACE", "SET"})
_XT_HOW = {
    "MASQUERADE": "masquerade",
    "SNAT": "snat",
    "REDIRECT": "redirect",
    "MARK": "mark",
    "TCPMSS": "maxseg",
    "DSCP": "dscp",
    "CLASSIFY": "priority",
    "SECMARK": "secmark",
    "CHECKSUM": "checksum",
    "CT": "track",
}
_MANGLE_HOW = {
    "meta": {"mark": "mark", "priority": "priority", "secmark": "secmark", "nftrace": "trace"},
    "ct": {"zone": "track", "helper": "track"},
    "tcp option": {"maxseg": "maxseg"},
    "payload": {"dscp": "dscp"},
}
_HOW = {"masquerade": "masquerade", "snat": "snat", "redirect": "redirect"}
_HOW |= {"notrack": "track", "ct helper": "track"}


def _how(name: str, body: object, lead: str) -> str:
    about = body if isinstance(body, dict) else {}
    if name == "xt" and about.get("type") == "target":
        target = str(about.get("name"))
        return f"dnat {lead}" if target == "DNAT" else _XT_HOW.get(target, OTHER)
    if name == "dnat":
        address = about.get("addr")
        return f"dnat {address if isinstance(address, str) else '?'}"
    if name == "mangle" and isinstance(about.get("key"), dict):
        for kind, what in about["key"].items():
            field = what.get("key", what.get("field")) if isinstance(what, dict) else None
            if kind == "tcp option" and isinstance(what, dict):
                field = what.get("name")
            return _MANGLE_HOW.get(kind, {}).get(str(field), OTHER)
    return _HOW.get(name, OTHER)
