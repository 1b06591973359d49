"""Grants on the node: what may be opened, when it opens and when it ends. PURE: no clock, no files, no kernel.

Trust: the directive that carries a grant is signed by the controller's online key, which may only choose. So every grant
is held against `[access]` of the signed baseline, and one that goes beyond it in anything is refused whole.

Time: start and end are turned into times since boot when a grant first comes, and only these count from then on: setting
the clock changes nothing (ATTACKS a04). What is left is written down now and then, so that after a reboot a grant opens
again for no longer than that, whatever the clock says. The controller's own time, the newest `issued` that was
accepted, is a floor below which no clock here is believed.

Refuses: `grant.unbounded`, `grant.beyond`, `grant.too-long`, `grant.one-person`, `grant.changed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from contract.errors import Rejected
from contract.grant import MAX_GRANTS, Grant, Opening, network
from contract.messages import Posture

if TYPE_CHECKING:
    from agent.firewall.section import Zone
    from agent.probes.access import Section

ANY_TIMEOUT_S: Final = 86400.0
"""Stands for "some timeout" where rules are compared; what is loaded has the time that is left."""
Closing = Literal["", "ended", "revoked", "isolated", "refused"]


@dataclass(frozen=True, kw_only=True)
class OpenPort:
    """One opening, resolved: only `ipaddress` spellings, integers and checked interface names are in it."""

    inbound: bool
    protocol: Literal["tcp", "udp"]
    ports: tuple[int, ...]
    interfaces: tuple[str, ...]
    peers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OpenGrant:
    """A grant that is open now."""

    id: int
    ends_s: float
    """Seconds since boot."""
    ports: tuple[OpenPort, ...] = ()
    usb: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """`vendor:product`, and the kinds of its interfaces that may work."""
    accounts: tuple[str, ...] = ()
    ends_at: float = 0.0
    """By the wall clock, seconds since 1970: for what knows days only."""
    timeout_s: float = ANY_TIMEOUT_S

    def at(self, boottime_s: float) -> OpenGrant:
        """Return the grant with the timeout that the kernel is to be given now; never less than a millisecond."""
        return replace(self, timeout_s=max(0.001, self.ends_s - boottime_s))


class Kept(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of a grant over restarts."""

    sha256: bytes
    """Of the grant as it first came: what stands under an id never changes."""
    boot_id: str
    starts_s: float
    """Seconds since that boot."""
    ends_s: float
    wait_s: float
    """Until it starts, and below until it ends: as it was when this was last written."""
    left_s: float
    open: bool = False
    refused: str = ""
    """The code, once it was told."""
    carried_bytes: int = 0
    """Carried under it so far."""
    sources: tuple[str, ...] = ()
    """Who used it: the first so many addresses."""


class Clock(NamedTuple):
    """What time it is, three ways."""

    now: float
    """Wall clock, seconds since 1970; not below the newest directive's `issued`."""
    boottime_s: float
    boot_id: str


@dataclass(frozen=True)
class Bounds:
    """What the signed baseline says of grants. Verdicts are kept: a zone may have a hundred thousand addresses."""

    section: Section | None
    zones: Mapping[str, Zone]
    known: dict[bytes, OpenGrant | Rejected] = field(default_factory=dict)

    def verdict(self, grant: Grant, sha256: bytes) -> OpenGrant | Rejected:
        """Return what a grant opens, or why nothing."""
        if sha256 not in self.known:
            while len(self.known) >= MAX_GRANTS:
                del self.known[next(iter(self.known))]
            try:
                self.known[sha256] = bounded(grant, self)
            except Rejected as refused:
                self.known[sha256] = refused
        return self.known[sha256]


class Due(NamedTuple):
    """One grant of the directive, and what is to be done about it."""

    grant: Grant
    kept: Kept
    opened: OpenGrant | None
    """None: not open now."""
    why: Closing
    """Why not; empty while it waits for its time, or is open."""
    refused: Rejected | None


def clock(now: float, issued: float, boottime_s: float, boot_id: str) -> Clock:
    """Return the time; a clock that is behind the controller's last word is not believed."""
    return Clock(max(now, issued), boottime_s, boot_id)


def digest(grant: Grant) -> bytes:
    """Return what identifies a grant's content."""
    return hashlib.sha256(msgspec.json.encode(grant)).digest()


def begun(grant: Grant, at: Clock) -> Kept:
    """Return the record of a grant that came just now."""
    wait_s, left_s = max(0.0, grant.starts - at.now), max(0.0, grant.ends - at.now)
    return Kept(
        sha256=digest(grant),
        boot_id=at.boot_id,
        starts_s=at.boottime_s + wait_s,
        ends_s=at.boottime_s + left_s,
        wait_s=wait_s,
        left_s=left_s,
    )


def resumed(kept: Kept, grant: Grant, at: Clock) -> Kept:
    """Return the record as it holds in this boot: for no longer than what was left, and than the wall clock says."""
    if kept.boot_id == at.boot_id:
        return kept
    wait_s = min(kept.wait_s, max(0.0, grant.starts - at.now))
    left_s = min(kept.left_s, max(0.0, grant.ends - at.now))
    return msgspec.structs.replace(
        kept,
        boot_id=at.boot_id,
        starts_s=at.boottime_s + wait_s,
        ends_s=at.boottime_s + left_s,
        wait_s=wait_s,
        left_s=left_s,
        open=False,
    )


def running(kept: Kept, boottime_s: float) -> Kept:
    """Return the record with the time that is left now, to be written down."""
    wait_s, left_s = kept.starts_s - boottime_s, kept.ends_s - boottime_s
    return msgspec.structs.replace(kept, wait_s=max(0.0, wait_s), left_s=max(0.0, left_s))


def due(
    grants: Sequence[Grant],
    kept: Mapping[int, Kept],
    bounds: Bounds,
    posture: Posture,
    at: Clock,
) -> list[Due]:
    """Return what is to be done about each grant of the directive."""
    return [_due(grant, kept.get(grant.id), bounds, posture, at) for grant in grants]


def _due(
    grant: Grant,
    kept: Kept | None,
    bounds: Bounds,
    posture: Posture,
    at: Clock,
) -> Due:
    held = begun(grant, at) if kept is None else resumed(kept, grant, at)
    sha256 = digest(grant)
    if held.sha256 != sha256:
        refused = Rejected("grant.changed", f"grant {grant.id} came before with other content")
        return Due(grant, held, None, "refused", refused)
    verdict = bounds.verdict(grant, sha256)
    if isinstance(verdict, Rejected):
        return Due(grant, held, None, "refused", verdict)
    if at.boottime_s >= held.ends_s:
        return Due(grant, held, None, "ended", None)
    if posture == "isolated":
        return Due(grant, held, None, "isolated", None)
    if at.boottime_s < held.starts_s:
        return Due(grant, held, None, "", None)
    return Due(grant, held, replace(verdict, ends_s=held.ends_s), "", None)


def bounded(grant: Grant, bounds: Bounds) -> OpenGrant:
    """Return what a grant opens, if the signed baseline lets it. Raises Rejected `grant.*`.

    1. there is an `[access]` section (`grant.unbounded`)
    2. where it wants two persons, who asked is not who approved (`grant.one-person`)
    3. every opening fits one entry whole: direction, protocol, ports, peers in its zone (`grant.beyond`)
    4. every USB id, account and door is named by an entry (`grant.beyond`)
    5. the grant is no longer than the shortest limit of all entries it needs (`grant.too-long`)
    """
    section, zones = bounds.section, bounds.zones
    if section is None:  # 1
        raise Rejected("grant.unbounded", f"grant {grant.id}: the baseline has no [access] section")
    if section.two_persons and grant.requested_by in grant.approved_by:  # 2
        raise Rejected("grant.one-person", f"grant {grant.id}: {grant.requested_by} asked and approved")
    limits: list[float] = []
    ports = []
    for opening in grant.access.openings:  # 3
        port, limit_s = _bounded_opening(grant, opening, section, zones)
        ports.append(port)
        limits.append(limit_s)
    named = (  # 4
        ("usb", grant.access.usb, [(entry.ids, entry.max_s) for entry in section.usb]),
        ("account", grant.access.accounts, [(entry.names, entry.max_s) for entry in section.accounts]),
        ("door", grant.access.doors, [(entry.names, entry.max_s) for entry in section.doors]),
    )
    for what, wanted, entries in named:
        limits += [_limit(grant, what, each, entries) for each in wanted]
    length_s = grant.ends - grant.starts
    if length_s > min(limits, default=0.0):  # 5
        raise Rejected(
            "grant.too-long",
            f"grant {grant.id}: {length_s:.0f} s, the baseline allows {min(limits, default=0.0):.0f}",
        )
    return OpenGrant(
        id=grant.id,
        ends_s=0.0,
        ports=tuple(ports),
        usb=tuple((name, _kinds(name, section)) for name in sorted(set(grant.access.usb))),
        accounts=tuple(sorted(set(grant.access.accounts))),
        ends_at=grant.ends,
    )


def _kinds(name: str, section: Section) -> tuple[str, ...]:
    """Return the kinds of interfaces that the longest-lasting entry of a device lets work."""
    entry = max((each for each in section.usb if name in each.ids), key=lambda each: each.max_s)
    return tuple(entry.interfaces)


def _limit(grant: Grant, what: str, wanted: str, entries: Iterable[tuple[Sequence[str], float]]) -> float:
    fitting = [max_s for names, max_s in entries if wanted in names]
    if not fitting:
        raise Rejected("grant.beyond", f"grant {grant.id}: no entry of [access] allows {what} {wanted}")
    return max(fitting)


def _bounded_opening(
    grant: Grant, opening: Opening, section: Section, zones: Mapping[str, Zone]
) -> tuple[OpenPort, float]:
    """Return the opening as the longest-lasting entry allows it, and that entry's limit."""
    for entry in sorted(section.network, key=lambda each: (-each.max_s, each.name)):
        zone = zones.get(entry.zone)
        if (
            zone is not None
            and not zone.macs
            and (entry.direction, entry.protocol) == (opening.direction, opening.protocol)
            and all(any(low <= port <= high for low, high in entry.ranges()) for port in opening.ports)
            and all(_inside(peer, zone) for peer in opening.peers)
        ):
            port = OpenPort(
                inbound=opening.direction == "in",
                protocol=opening.protocol,
                ports=tuple(sorted(set(opening.ports))),
                interfaces=tuple(sorted(set(zone.interfaces))),
                peers=tuple(opening.peers),
            )
            return port, entry.max_s
    raise Rejected(
        "grant.beyond",
        f"grant {grant.id}: no entry of [access] allows {opening.direction} {opening.protocol}"
        f" {', '.join(map(str, opening.ports))} with {', '.join(opening.peers)}",
    )


def _inside(peer: str, zone: Zone) -> bool:
    """Tell whether all of a peer's addresses are in the zone; a zone of interfaces alone holds every address.

    What names lead to is no part of it: a name is answered by somebody else.
    """
    if not zone.addresses:
        return not zone.names
    wanted = network(peer)
    for text in zone.addresses:
        around = network(text)
        if wanted.version == around.version and wanted.subnet_of(around):  # type: ignore[arg-type]
            return True
    return False
