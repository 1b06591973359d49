"""What people edit as a whole, each with a tag: who sends the tag of what they have seen overwrites nothing else (c15).

A tag is a digest of the whole, so it is the same with every controller and needs no column. Whoever is about to change the whole reads
it under a lock that its change needs as well: of two that have seen the same, one comes second and is told so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.names import checked_name
from controller.escrow_records import LeastTier
from controller.fleet import responding, sites
from controller.permissions import Right
from controller.policy import SitePolicy
from controller.records import Record
from controller.response_records import ResponseView
from controller.store import Store, Transaction, nodes, tokens, users
from controller.store import escrow as escrow_rows
from controller.store import responding as response_rows
from controller.store import sites as site_rows

Path = Mapping[str, str]
Whole = Callable[[Transaction, Path, bool], object]
"""What a path names, as it is now; locked for a change where that is wanted. Raises Rejected `*.unknown`."""
MAX_MATCH_CHARS: Final = 1024
Match = frozenset[str] | Literal["absent"]
"""Tags of what the asker has seen; or that they have seen nothing there."""


class NotThere(Rejected):
    """There is none, but its place is there: whoever may replace it may make it."""


class Labels(Record, frozen=True, kw_only=True):
    """All labels of a node."""

    labels: dict[str, str]


class Policy(Record, frozen=True, kw_only=True):
    """The policy of a site."""

    policy: SitePolicy


class Chosen(Record, frozen=True, kw_only=True):
    """The baseline that a site is to hold to."""

    baseline: WantedBaseline | None


class Held(Record, frozen=True, kw_only=True):
    """The rights of a person or a token."""

    rights: tuple[Right, ...]


class KeyHeld(Record, frozen=True, kw_only=True):
    """A key in escrow, by what people did with it: a release to its node changes nothing here."""

    node: str
    name: str
    version: int
    least_tier: LeastTier
    put_at: float
    put_by: str
    revoked_at: float | None
    revoked_by: str | None


class Editing:
    """Reading what can be edited. A part of `controller.fleet.Fleet`, which see."""

    _store: Store

    async def whole(self, whole: Whole, path: Path) -> object:
        """As it is now. Raises Rejected `*.unknown`."""
        return await self._store.look(lambda tx: whole(tx, path, False))


def labels(tx: Transaction, path: Path, lock: bool) -> Labels:
    """Labels of a node."""
    row = nodes.load(tx, path["node"], lock=lock)
    if row is None:
        raise Rejected("node.unknown", path["node"])
    return Labels(labels=dict(sorted(msgspec.json.decode(row.labels, type=dict[str, str]).items())))


def policy(tx: Transaction, path: Path, lock: bool) -> Policy:
    """Policy of a site."""
    if lock:
        site_rows.lock(tx, path["site"])
    return Policy(policy=sites.known(tx, path["site"]).policy)


def chosen(tx: Transaction, path: Path, lock: bool) -> Chosen:
    """Baseline of a site."""
    if lock:
        site_rows.lock(tx, path["site"])
    return Chosen(baseline=sites.known(tx, path["site"]).baseline)


def responses(tx: Transaction, _: Path, lock: bool) -> ResponseView:
    """Response rules in force."""
    if lock:
        response_rows.lock(tx)
    return responding.in_force(tx)


def key(tx: Transaction, path: Path, lock: bool) -> KeyHeld:
    """Key of a node. Raises NotThere `key.unknown`."""
    node, name = path["node"], checked_name(path["name"], "key")
    if nodes.load(tx, node, lock=lock) is None:
        raise Rejected("node.unknown", node)
    row = escrow_rows.get(tx, node, name)
    if row is None:
        raise NotThere("key.unknown", f"{node} has no key {name}")
    return KeyHeld(**{field: getattr(row, field) for field in KeyHeld.__struct_fields__})


def rights_of_token(tx: Transaction, path: Path, lock: bool) -> Held:
    """Rights of a token."""
    if lock:
        tokens.lock_people(tx)
    row = tokens.by_name(tx, path["token"])
    if row is None or row.revoked_at is not None:
        raise Rejected("token.unknown", path["token"])
    return Held(rights=tuple(row.rights))


def rights_of_user(tx: Transaction, path: Path, lock: bool) -> Held:
    """Rights of a person."""
    if lock:
        tokens.lock_people(tx)
    row = users.load(tx, path["user"], lock=lock)
    if row is None:
        raise Rejected("user.unknown", path["user"])
    return Held(rights=tuple(row.rights))


def tag_of(content: bytes) -> str:
    """Return the entity tag of an answer (RFC 9110, clause 8.8.3): a strong one."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def parse_match(untrusted_header: str) -> frozenset[str]:
    """Return the tags of an If-Match, or `*`; what is none matches nothing. Raises Rejected `match.malformed`."""
    if len(untrusted_header) > MAX_MATCH_CHARS:
        raise Rejected("match.malformed", 'If-Match: wanted the ETag of a GET, as in "4f1c...", or *')
    text = untrusted_header.strip()
    parts = [part.strip() for part in text.split(",")]
    return frozenset("*" if text == "*" else (part for part in parts if part != "*"))


def check_match(tx: Transaction, whole: Whole, path: Path, wanted: Match) -> None:
    """Hold what is there against what the asker has seen (RFC 9110, clauses 13.1.1 and 13.1.2), in the transaction that
    changes it. Raises Rejected `match.stale`."""
    try:
        found = tag_of(msgspec.json.encode(whole(tx, path, True)))
    except NotThere as none:
        if wanted == "absent":
            return
        raise Rejected("match.stale", f"{none.detail}: If-None-Match: * makes one") from None
    if wanted == "absent":
        raise Rejected("match.stale", "there is one: GET it, and send its ETag as If-Match to replace it")
    if "*" not in wanted and found not in wanted:
        raise Rejected("match.stale", "it has changed since you looked: GET it again, and send its ETag")
