"""Who may do what: permissions, roles as sets of them, and scopes. Pure: one table and a few questions.

Roles are no ladder: an approver may approve and not isolate, an auditor may read what an operator may not. A right is a role
over sites; somebody may have several. What is not in the table is not allowed, and an empty list of sites is refused where it is
read, so that nothing ever means everything.

Whoever may label nodes moves them into and out of the scopes that labels make: so that is an act of whoever manages people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Literal, NamedTuple, get_args

from msgspec import Meta, Struct

from contract.errors import Rejected
from contract.messages import Name
from controller.selector import FIELDS, MAX_CHARS, Selector, Term, matches, parse_selector

Permission = Literal[
    "fleet.read",
    "evidence.read",
    "audit.read",
    "people.read",
    "isolation.act",
    "incident.close",
    "incident.suppress",
    "boot.accept",
    "baseline.assign",
    "baseline.push",
    "rollout.request",
    "rollout.approve",
    "rollout.act",
    "grant.request",
    "grant.approve",
    "grant.revoke",
    "break-glass.issue",
    "break-glass.revoke",
    "key.put",
    "key.revoke",
    "node.expect",
    "node.admit",
    "node.label",
    "site.make",
    "site.policy",
    "response.set",
    "outlet.retry",
    "restore.confirm",
    "people.manage",
]
Role = Literal["viewer", "auditor", "operator", "approver", "installer", "admin"]

MEANING: Final[Mapping[Permission, str]] = {
    "fleet.read": "look at nodes, sites, incidents, events, grants, enrolments, figures",
    "evidence.read": "list and export stored evidence",
    "audit.read": "read what people did",
    "people.read": "list people and tokens",
    "isolation.act": "isolate and release nodes and sites",
    "incident.close": "close incidents",
    "incident.suppress": "keep something quiet for a while",
    "boot.accept": "accept changed boots, announce and withdraw reference values",
    "baseline.assign": "choose a signed baseline for a site",
    "baseline.push": "push what was signed offline",
    "rollout.request": "plan a baseline, ask for a rollout",
    "rollout.approve": "approve a rollout that somebody else asked for",
    "rollout.act": "pause, resume and abort rollouts",
    "grant.request": "ask for access to a node",
    "grant.approve": "approve access that somebody else asked for",
    "grant.revoke": "end access, or turn a request down",
    "break-glass.issue": "make break-glass codes",
    "break-glass.revoke": "make break-glass codes useless",
    "key.put": "put a sealed key in escrow",
    "key.revoke": "make a key in escrow unopenable",
    "node.expect": "expect endorsement keys, make one-use enrolment tokens",
    "node.admit": "let nodes in, turn nodes away",
    "node.label": "label nodes, and so move them between scopes that labels make",
    "site.make": "make sites",
    "site.policy": "replace a site's policy",
    "response.set": "replace the rules of what is done by itself",
    "outlet.retry": "try a failing receiver of events at once",
    "restore.confirm": "let a restored database go on as usual",
    "people.manage": "make, change and end people and tokens",
}

_READS: Final[frozenset[Permission]] = frozenset({"fleet.read", "evidence.read", "audit.read", "people.read"})
ROLES: Final[Mapping[Role, frozenset[Permission]]] = {
    "viewer": frozenset({"fleet.read"}),
    "auditor": _READS,
    "operator": frozenset(
        {
            "fleet.read",
            "evidence.read",
            "isolation.act",
            "incident.close",
            "incident.suppress",
            "outlet.retry",
            "boot.accept",
            "baseline.assign",
            "rollout.request",
            "rollout.act",
            "grant.request",
            "grant.revoke",
            "break-glass.revoke",
            "key.revoke",
        }
    ),
    "approver": frozenset({"fleet.read", "grant.approve", "grant.revoke", "rollout.approve", "node.admit"}),
    "installer": frozenset({"fleet.read", "node.expect", "node.admit", "key.put"}),
    "admin": frozenset(get_args(Permission)),
}
"""The table. `docs/roles.md` shows it, and a test holds that page to it."""

MAX_SITES: Final = 1000
MAX_RIGHTS: Final = 32
Sites = frozenset[str] | None
"""Sites by name; None is every site, those to come as well."""


class Placed(NamedTuple):
    """Where one node is."""

    site: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reach:
    """What something touches: whole sites, and single nodes besides."""

    sites: Sites = frozenset()
    nodes: tuple[Placed, ...] = ()


class Part(Struct, frozen=True, kw_only=True):
    """Sites, and of these only nodes with such labels."""

    sites: Sites
    labels: str | None = None
    """A selector over labels; None: whole sites."""

    def has_site(self, site: str) -> bool:
        """Whether a site is named; with labels that is not yet the whole of it."""
        return self.sites is None or site in self.sites

    def has_node(self, node: Placed) -> bool:
        """Whether a node is meant."""
        return self.has_site(node.site) and (
            self.labels is None or matches(label_selector(self.labels), {}, node.labels)
        )

    def holds(self, other: Part) -> bool:
        """Whether all of `other` lies within, as far as that can be read from the two: labels must be the same words."""
        inside = self.sites is None or (other.sites is not None and other.sites <= self.sites)
        return inside and self.labels in (None, other.labels)


class Scope(Struct, frozen=True):
    """Where something is allowed: any of the parts."""

    parts: tuple[Part, ...]

    @property
    def everywhere(self) -> bool:
        """Whether it is the whole fleet."""
        return any(part.sites is None and part.labels is None for part in self.parts)

    def holds(self, reach: Reach) -> bool:
        """Whether all of a reach lies within."""
        if reach.sites is None:
            return self.everywhere
        whole = [part for part in self.parts if part.labels is None]
        return all(any(part.has_site(site) for part in whole) for site in reach.sites) and all(
            any(part.has_node(node) for part in self.parts) for node in reach.nodes
        )

    def touches(self, reach: Reach) -> bool:
        """Whether any of a reach lies within."""
        single = [Reach(frozenset({site})) for site in reach.sites or ()]
        single += [Reach(nodes=(node,)) for node in reach.nodes]
        return self.everywhere or any(self.holds(one) for one in single)

    def covers(self, other: Scope) -> bool:
        """Whether all of `other` lies within: site by site where it names them."""
        return all(any(own.holds(one) for own in self.parts) for part in other.parts for one in _single(part))

    def holds_all(self, selector: Selector) -> bool:
        """Whether a selector can mean nothing outside, as far as its own words say."""
        named = [term.values for term in selector.terms if term.key == "site" and term.operator == "in"]
        return any(
            (part.sites is None or any(part.sites.issuperset(values) for values in named))
            and (part.labels is None or set(label_selector(part.labels).terms) <= set(selector.terms))
            for part in self.parts
        )

    def limited(self, selector: Selector) -> Selector:
        """Return a selector that means what this one does within the scope. Raises Rejected `scope.several`: several parts make
        no one selector."""
        if self.everywhere or self.holds_all(selector):
            return selector
        if len(self.parts) != 1:
            raise Rejected("scope.several", f"name one of your sites in the selector: {self}")
        part, terms = self.parts[0], selector.terms
        if part.sites is not None:
            terms += (Term(key="site", operator="in", values=tuple(sorted(part.sites))),)
        if part.labels is not None:
            terms += label_selector(part.labels).terms
        return parse_selector(str(Selector(terms=terms)))  # what is stored must be read again

    def narrowed(self, site: str | None) -> Scope:
        """Return what of it is at `site` (None: all of it). Outside the scope that is nowhere."""
        if site is None:
            return self
        at = [part for part in self.parts if part.has_site(site)]
        return Scope(tuple(Part(sites=frozenset({site}), labels=part.labels) for part in at))

    def __str__(self) -> str:
        """As people read it."""
        return "; ".join(map(_shown, self.parts)) or "no site"


def _single(part: Part) -> list[Part]:
    if part.sites is None:
        return [part]
    return [Part(sites=frozenset({site}), labels=part.labels) for site in sorted(part.sites)]


def _shown(part: Part) -> str:
    where = "the whole fleet" if part.sites is None else ", ".join(sorted(part.sites))
    return where if part.labels is None else f"{where} [{part.labels}]"


EVERYWHERE: Final = Scope((Part(sites=None),))
NOWHERE: Final = Scope(())


def at_sites(*sites: str) -> Scope:
    """Return the scope of whole sites."""
    return Scope((Part(sites=frozenset(sites)),))


@lru_cache(maxsize=1024)
def label_selector(text: str) -> Selector:
    """Return a selector over labels alone. Raises Rejected `selector.*`, `rights.labels`: fields of a node change by
    themselves, and its site is said in `sites`."""
    selector = parse_selector(text)
    if not selector.terms or any(term.key in FIELDS for term in selector.terms):
        raise Rejected("rights.labels", f"{text!r}: wanted labels, as in line in (3,4)")
    return selector


class Right(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A role over sites. `"all"` is said, never left out."""

    role: Role
    sites: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_SITES)] | Literal["all"]
    labels: Annotated[str, Meta(min_length=1, max_length=MAX_CHARS)] | None = None
    """Of these sites only nodes with such labels: a selector. Nothing that is a whole site's is in scope then."""

    def __post_init__(self) -> None:
        """Raise ValueError for labels that select nothing that could be read."""
        if self.labels is not None:
            try:
                label_selector(self.labels)
            except Rejected as refused:
                raise ValueError(str(refused)) from None

    @property
    def part(self) -> Part:
        """Where it holds."""
        return Part(sites=None if self.sites == "all" else frozenset(self.sites), labels=self.labels)

    def __str__(self) -> str:
        """As people write it: `operator@lyon,paris`, `operator@lyon[line=3]`."""
        where = self.sites if self.sites == "all" else ",".join(self.sites)
        return f"{self.role}@{where}" + ("" if self.labels is None else f"[{self.labels}]")


Rights = Annotated[tuple[Right, ...], Meta(min_length=1, max_length=MAX_RIGHTS)]


def scope_of(rights: Iterable[Right], permission: Permission) -> Scope | None:
    """Return where these rights allow something; None where nowhere."""
    return _joined(right.part for right in rights if permission in ROLES[right.role])


def _joined(parts: Iterable[Part]) -> Scope | None:
    by_labels: dict[str, Sites] = {}
    for part in parts:
        key = part.labels or ""
        before = by_labels.get(key, frozenset())
        by_labels[key] = None if before is None or part.sites is None else before | part.sites
    if not by_labels:
        return None
    joined = Scope(tuple(Part(sites=by_labels[key], labels=key or None) for key in sorted(by_labels)))
    return EVERYWHERE if joined.everywhere else joined


def beyond(own: Sequence[Right], given: Sequence[Right]) -> str:
    """Return what `given` allows that `own` does not, as people read it; empty where there is nothing.

    Nobody gives what they have not: not a permission, and not a permission for a site where they lack it.
    """
    for permission in get_args(Permission):
        wanted, have = scope_of(given, permission), scope_of(own, permission)
        if wanted is None:
            continue
        if have is None:
            return f"{permission}"
        if not have.covers(wanted):
            return f"{permission} for {wanted}, yours is {have}"
    return ""


def scope_of_all(rights: Iterable[Right]) -> Scope:
    """Return everything that these rights touch."""
    return _joined(right.part for right in rights) or NOWHERE


def roles_with(permission: Permission) -> list[Role]:
    """Return the roles that allow something, in the order of the table."""
    return [role for role, allowed in ROLES.items() if permission in allowed]


def is_admin(rights: Collection[Right]) -> bool:
    """Whether these rights manage everybody: somebody with them must always be left."""
    return (scope_of(rights, "people.manage") or NOWHERE).everywhere


@dataclass(frozen=True, slots=True)
class Person:
    """Who is asking: a person, or a program with a token."""

    name: str
    """As it stands in the trail."""
    rights: tuple[Right, ...]
    user: str | None = None
    """The local user whose session this is; None for a token, and for somebody whom an issuer vouches for."""


ON_THE_MACHINE: Final = Person("init", (Right(role="admin", sites="all"),))
"""Whoever runs a command on the controller's own machine: it holds the keys, so nothing is kept from it."""
