"""Selectors: which nodes are meant, as people write it. Pure.

    site=lyon,line in (3,4),!retired        all of them at once: a comma means "and"
    all                                     every node; nothing else does

A term is `key=value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key` (it has it) or `!key` (it has it not), as
Kubernetes writes label selectors. Keys are the fields of FIELDS or labels. `!=` and `notin` also take what has no such label.
Refuses: an empty selector (it never means all), unknown signs, more than MAX_TERMS terms or MAX_VALUES values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from contract.errors import Rejected

FIELDS: Final = ("node", "site", "standing", "tier", "baseline", "agent")
"""What every node has: `baseline` is the reported one as name/version, `agent` the version of its agent."""
MAX_CHARS: Final = 2048
MAX_TERMS: Final = 16
MAX_VALUES: Final = 256
MAX_LABELS: Final = 32
MAX_WORD_CHARS: Final = 63

Operator = Literal["in", "notin", "has", "hasnot"]

_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?", re.ASCII)
_KEY = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_SET = re.compile(r"(?P<key>\S+)\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)", re.ASCII)


class Term(Struct, frozen=True, kw_only=True):
    """One condition. `values` is empty for `has` and `hasnot`."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class Selector(Struct, frozen=True, kw_only=True):
    """All terms must hold. No terms: every node, which only `all` says."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        """Return it as it would be written."""
        return ",".join(map(_written, self.terms)) or "all"


def parse_selector(untrusted: str) -> Selector:
    """Parse a selector. Raises Rejected `selector.empty`, `selector.malformed`."""
    text = untrusted.strip()
    if not text:
        raise Rejected("selector.empty", "nothing named never means everything; write `all` for every node")
    if len(text) > MAX_CHARS:
        raise Rejected("selector.malformed", f"{len(text)} characters, at most {MAX_CHARS}")
    if text == "all":
        return Selector(terms=())
    parts = _parts(text)
    if len(parts) > MAX_TERMS:
        raise Rejected("selector.malformed", f"{len(parts)} terms, at most {MAX_TERMS}")
    return Selector(terms=tuple(_term(part) for part in parts))


def matches(selector: Selector, fields: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Say whether a node with these fields (of FIELDS) and labels is meant."""
    return all(_holds(term, fields if term.key in FIELDS else labels) for term in selector.terms)


def checked_labels(untrusted: Mapping[str, str]) -> dict[str, str]:
    """Return labels sorted by key. Raises Rejected `label.invalid`."""
    if len(untrusted) > MAX_LABELS:
        raise Rejected("label.invalid", f"{len(untrusted)} labels, at most {MAX_LABELS}")
    for key, value in untrusted.items():
        if _KEY.fullmatch(key) is None:
            raise Rejected(
                "label.invalid", f"key {_shown(key)}: wanted 1 to 63 of a-z, 0-9, '.', '_' and '-'"
            )
        if key in FIELDS or key == "all":
            raise Rejected("label.invalid", f"key {key}: that is a field of every node, not a label")
        if _WORD.fullmatch(value) is None:
            raise Rejected(
                "label.invalid",
                f"{key}={_shown(value)}: wanted 1 to 63 letters, digits, '.', '_', '/' and '-'",
            )
    return dict(sorted(untrusted.items()))


def _parts(text: str) -> list[str]:
    """Split at the commas that are in no parentheses."""
    parts, depth, begin = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    parts.append(text[begin:])
    return [part.strip() for part in parts]


def _term(part: str) -> Term:
    found = _SET.fullmatch(part)
    if found is not None:
        values = tuple(dict.fromkeys(_value(each) for each in found["values"].split(",")))
        if len(values) > MAX_VALUES:
            raise Rejected("selector.malformed", f"{len(values)} values, at most {MAX_VALUES}")
        return Term(
            key=_key(found["key"]), operator="in" if found["operator"] == "in" else "notin", values=values
        )
    for sign, operator in (("!=", "notin"), ("=", "in")):
        key, there, value = part.partition(sign)
        if there:
            return Term(
                key=_key(key), operator="in" if operator == "in" else "notin", values=(_value(value),)
            )
    if part.startswith("!"):
        return Term(key=_key(part[1:]), operator="hasnot")
    return Term(key=_key(part), operator="has")


def _key(text: str) -> str:
    key = text.strip()
    if _KEY.fullmatch(key) is None or key == "all":
        raise Rejected("selector.malformed", f"{_shown(text)}: wanted a key, as in site=lyon,line in (3,4)")
    return key


def _value(text: str) -> str:
    value = text.strip()
    if _WORD.fullmatch(value) is None:
        raise Rejected("selector.malformed", f"{_shown(text)}: wanted a value, as in site=lyon,line in (3,4)")
    return value


def _holds(term: Term, of: Mapping[str, str]) -> bool:
    value = of.get(term.key)
    match term.operator:
        case "in":
            return value in term.values
        case "notin":
            return value not in term.values
        case "has":
            return value is not None
        case "hasnot":
            return value is None


def _written(term: Term) -> str:
    match term.operator:
        case "has":
            return term.key
        case "hasnot":
            return f"!{term.key}"
    if len(term.values) == 1:
        return f"{term.key}{'=' if term.operator == 'in' else '!='}{term.values[0]}"
    return f"{term.key} {term.operator} ({','.join(term.values)})"


def _shown(text: str) -> str:
    return repr(text[:MAX_WORD_CHARS].encode("unicode_escape").decode())
