"""What the controller knows, as types: records that use cases take and give, and views that the API shows.

Immutable structs without behaviour. Every time is in seconds since 1970 (float), every duration in seconds.
Names ending in `View` are shown to people as they stand, so nothing secret is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from contract.directive import Directive, WantedBaseline
from contract.ima import ImaState
from contract.messages import (
    Drift,
    Dropped,
    Finding,
    Name,
    Posture,
    ReportBody,
    Severity,
    Tier,
)
from contract.quote import Counters
from controller.claimsview import BootClaims
from controller.policy import SitePolicy
from controller.tpmrecord import TpmRecord

Standing = Literal["healthy", "overdue", "unreachable", "untrusted", "isolated"]
EkTrust = Literal["certificate", "allow-list", "unverified"]
IncidentState = Literal["open", "needs-person", "resolved", "closed"]
IncidentKind = Literal["untrusted", "update", "drift", "identity", "drifting-site", "event"]

T = TypeVar("T")
MAX_REFERENCE_BYTES = 2 * 1024 * 1024
"""Of an encoded boot reference."""


class Record(Struct, frozen=True, kw_only=True):
    """Base of everything here: immutable, by keyword."""


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what comes from outside: unknown fields refused."""


# -- enrolment -------------------------------------------------------------------------------------------


class IssuedCertificate(Record, frozen=True, kw_only=True):
    """A client certificate that the authority made."""

    chain: bytes
    """PEM, leaf first."""
    sha256: bytes
    """Of the leaf's DER."""
    not_after: float


class NodeIdentity(Record, frozen=True, kw_only=True):
    """What a certificate is issued for."""

    node: str
    site: str


Issue = Callable[[NodeIdentity, bytes], IssuedCertificate]
"""Given identity and CSR (DER), sign. Runs inside the transaction that binds the result."""


# -- evidence --------------------------------------------------------------------------------------------


class BootRecord(Record, frozen=True, kw_only=True):
    """The boot that was appraised last. Good for reports with the same values; anything else is appraised anew."""

    reset: int
    pcrs_sha256: bytes
    """SHA-256 over the quoted values of BOOT_PCRS in ascending order."""
    event_log_sha256: bytes
    """Empty when the machine has no log."""
    judged_by: bytes = b""
    """Fingerprint of the policy: under another one the log is asked for again."""
    findings: list[Finding] = []


class Evidence(Record, frozen=True, kw_only=True):
    """A report after every check that needs no record but the session's. Made by the session code only after
    `verify_quote` has returned."""

    body: ReportBody
    counters: Counters
    findings: tuple[Finding, ...]
    """Of the quote and of the boot."""
    boot: BootRecord
    """What the next reports of this boot may be compared with."""
    reference: bytes | None = None
    """Encoded boot reference made from this report's log; stored as the node's when it has none, else kept as the
    one that `accept_boot` would accept. None where the boot is on record or as the accepted one."""
    announced: list[str] = []
    """What differs from the accepted boot and was announced: where there is any, this boot takes its place."""
    claims: bytes | None = None
    """Encoded claims of this report's log."""
    ima: ImaState | None = None
    """How far the IMA log is agreed now; None when nobody wants it."""


class SessionRecord(Record, frozen=True, kw_only=True):
    """All that verifying a node's reports needs."""

    node: str
    site: str
    ek_public: bytes
    ak_public: bytes
    certificate_sha256: bytes
    interval_s: float
    counters: Counters | None
    boot: BootRecord | None
    ima: ImaState | None = None
    """Of the boot that `counters` speak of."""
    baseline: WantedBaseline | None
    """The assigned one: reports are judged by its sections (controller.policies)."""
    epoch: int = 0
    """Which of the node's sessions it is; a later one ends it."""
    announced: str = ""
    """Spans of what is announced for the site: reports are judged by that too."""
    directive_number: int


class Outcome(Record, frozen=True, kw_only=True):
    """What one piece of evidence led to."""

    tier: Tier
    findings: list[Finding]
    events_acked: int
    directive: Directive | None
    """To be signed and sent with the answer."""
    affected: list[str]
    """Other nodes whose directive changed: push `directives_for` to those that are connected."""
    session: SessionRecord
    """Replaces the one held."""


# -- directives and holds --------------------------------------------------------------------------------


class HoldView(Record, frozen=True, kw_only=True):
    """An isolation in force, or one that was. Exactly one of node and site is the target."""

    id: int
    node: str | None
    site: str
    """The site isolated, or the site of the node."""
    reason: str
    actor: str
    automatic: bool
    fence_only: bool = False
    """The node keeps its posture; the others of its site drop its addresses."""
    incident: int | None
    placed_at: float
    released_at: float | None
    released_by: str | None
    release_reason: str | None


class Change(Record, frozen=True, kw_only=True):
    """What an act of a person did."""

    affected: list[str]
    """Nodes whose directive or session record changed."""
    holds: list[HoldView] = []


class Relabel(Strict, frozen=True, kw_only=True):
    """Labels to set and to take away, of the nodes that are named or meant."""

    nodes: Annotated[list[Name], Meta(min_length=1, max_length=1000)] | None = None
    selector: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    set: Annotated[dict[str, str], Meta(max_length=64)] = {}
    remove: Annotated[list[str], Meta(max_length=64)] = []
    reason: Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]


# -- views -----------------------------------------------------------------------------------------------


class Page(Record, Generic[T], frozen=True, kw_only=True):
    """A slice of a list; `next` is the cursor of the following one."""

    items: list[T]
    next: str | None


class ReportedBaseline(Record, frozen=True, kw_only=True):
    """A signed baseline, by content, as a node names it."""

    name: Name
    version: int
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class NodeView(Record, frozen=True, kw_only=True):
    """A node in a list."""

    node: str
    site: str
    standing: Standing
    standing_since: float
    tier: Tier
    last_report_at: float | None
    connected: bool
    posture: Posture | None
    """As reported; None before the first report."""
    wanted_posture: Posture
    baseline: ReportedBaseline | None
    baseline_since: float | None
    """When evidence first said that this one is in force."""
    wanted_baseline: WantedBaseline | None
    own_baseline: bool
    """The wanted one was chosen for this node, not for its site."""
    labels: dict[str, str]
    drifts: int
    agent_version: str
    ek_trust: EkTrust


class NodeDetail(Record, frozen=True, kw_only=True):
    """All there is to know about one node."""

    summary: NodeView
    ek_id: str
    ak_name: str
    approved_at: float
    approved_by: str
    certificate_sha256: str
    certificate_not_after: float
    boot_id: str
    os_release: str
    """By the node's own word; empty where it does not say."""
    uptime_s: float
    addresses: list[str]
    fenced: list[str]
    findings: list[Finding]
    findings_elsewhere: list[int]
    """How many other nodes show the same now, for each of `findings`."""
    drifts: list[Drift]
    pending: ReportedBaseline | None
    directive_number: int
    directive_accepted: int
    events_dropped: int
    dropped: list[Dropped]
    """By the firewall's counters, from the last report to the one before it; empty where nothing was."""
    boot_reference_at: float | None
    boot_candidate: bool
    """A changed boot was seen that `accept_boot` would accept."""
    boot_claims: BootClaims | None
    """Of the firmware log that was judged last."""
    ima_lines: int | None
    """Lines of the IMA log agreed in this boot; null where nobody wants it."""
    ima_bytes: int | None
    tpm: TpmRecord
    holds: list[HoldView]


class SiteView(Record, frozen=True, kw_only=True):
    """A site with its nodes counted by standing."""

    site: str
    policy: SitePolicy
    baseline: WantedBaseline | None
    nodes: dict[Standing, int]
    hold: HoldView | None
    created_at: float


class IncidentView(Record, frozen=True, kw_only=True):
    """Findings that belong together, and what was done about them."""

    id: int
    kind: IncidentKind
    severity: Severity
    state: IncidentState
    site: str
    """Where it began."""
    title: str
    nodes: list[str]
    nodes_total: int
    findings: list[Finding]
    findings_nodes: list[int | None] = []
    """How many nodes have shown each of `findings`, where one incident is looked at; null where that is not counted (drifts)."""
    done: list[str]
    """What was done or recommended, oldest first."""
    opened_at: float
    updated_at: float
    closed_at: float | None
    closed_by: str | None
    reopened: int = 0
    """How often it came again within ten minutes of its end."""
    quiet: bool = False
    """It comes and goes: that was told once, and the next word is when it has stayed away."""


class EventView(Record, frozen=True, kw_only=True):
    """Something that happened, on a node or here. `id` is the cursor."""

    id: int
    at: float
    """By the clock of whoever saw it."""
    stored_at: float
    source: Literal["agent", "controller"]
    node: str | None
    site: str | None
    seq: int | None
    kind: str
    severity: Severity
    summary: str
    detail: dict[str, str]


class BaselineView(Record, frozen=True, kw_only=True):
    """A signed baseline that the controller can choose."""

    name: str
    version: int
    sha256: str
    summary: str
    pushed_at: float
    pushed_by: str
    sites: list[str]


class AuditView(Record, frozen=True, kw_only=True):
    """Who did what, and why."""

    number: int
    """From 1, without gaps."""
    at: float
    actor: str
    act: str
    target: str
    reason: str


class FleetCounts(Record, frozen=True, kw_only=True):
    """For metrics and `status`."""

    nodes: dict[Standing, int]
    connected: int
    sites: int
    sites_isolated: int
    incidents_open: int
    incidents_needing_a_person: int
    enrolments_waiting: int
    last_event: int


class StandingChange(Record, frozen=True, kw_only=True):
    """A node crossed from one standing to another."""

    node: str
    site: str
    before: Standing
    after: Standing


# -- baselines -------------------------------------------------------------------------------------------


class NewBaseline(Record, frozen=True, kw_only=True):
    """A baseline that the repository has just accepted."""

    name: str
    version: int
    sha256: str
    """Hex."""
    summary: str
    boot_section: bytes = b""
    """JSON of its [boot] section; empty when it has none."""
    ima_section: bytes = b""
    """The same of its [ima] section."""


class Sections(Record, frozen=True, kw_only=True):
    """What a stored baseline says of attestation, as NewBaseline has it."""

    boot: bytes
    ima: bytes


class TrustChange(Record, frozen=True, kw_only=True):
    """The repository's new state, whole, and which baselines came with it."""

    files: dict[str, bytes]
    baselines: list[NewBaseline] = []


ChangeTrust = Callable[[dict[str, bytes]], TrustChange | None]
"""Given all trust files, return their new state, or None to leave them. Runs inside the transaction: no I/O."""
