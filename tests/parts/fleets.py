"""A fleet over a real database, and the evidence of nodes that need no TPM: what the session code would have made."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Sequence

from contract.binding import enrolment_proof_message
from contract.messages import BaselineRef, Drift, EnrolFinish, Event, Finding, Posture, ReportBody
from contract.quote import Counters
from controller.enrolment_records import Admitted, EnrolmentRequest
from controller.fleet import Fleet
from controller.permissions import EVERYWHERE
from controller.policy import BreakerLimits, FleetSettings, SitePolicy
from controller.records import BootRecord, Evidence, IssuedCertificate, NodeIdentity, Outcome
from controller.store import Store

T0 = 1_700_000_000.0
ACTOR = "tester"
_serial = itertools.count(1)


def digest(*parts: str) -> bytes:
    """32 bytes that stand for something."""
    return hashlib.sha256("/".join(parts).encode()).digest()


def issue(identity: NodeIdentity, csr: bytes) -> IssuedCertificate:
    """An authority that signs nothing: each certificate differs."""
    sha256 = digest(identity.node, csr.hex(), str(next(_serial)))
    return IssuedCertificate(chain=b"PEM " + sha256, sha256=sha256, not_after=T0 + 72 * 3600)


def request(
    node: str, *, tpm: str = "", ak: str = "", site: str | None = "factory", token: str = ""
) -> EnrolmentRequest:
    """A checked claim; `tpm` and `ak` name other hardware than the node's own."""
    tpm = tpm or node
    return EnrolmentRequest(
        node=node,
        site=site,
        ek_id=digest("ek", tpm).hex(),
        ek_public=b"EK " + tpm.encode(),
        ak_public=b"AK " + (ak or tpm).encode(),
        ak_name=b"\x00\x0b" + digest("ak", ak or tpm),
        csr=b"CSR " + node.encode(),
        ek_trust="certificate",
        token=token,
        secret=digest("secret", node, tpm, str(next(_serial))),
    )


def finish_of(enrolment: str, claim: EnrolmentRequest, secret: bytes | None = None) -> EnrolFinish:
    """The second step, as the right TPM would make it."""
    message = enrolment_proof_message(
        enrolment=enrolment,
        node=claim.node,
        ek_public=claim.ek_public,
        ak_public=claim.ak_public,
        csr=claim.csr,
    )
    key = claim.secret if secret is None else secret
    return EnrolFinish(enrolment=enrolment, proof=hmac.digest(key, message, "sha256"))


def finding(found: str, *, pcr: int = 9, wanted: str = "aaaa") -> Finding:
    """What `judge_boot` says of another boot."""
    return Finding(
        code="boot.pcr", detail=f"PCR {pcr} event 41: wanted {wanted}, found {found}", pcr=pcr, event=41
    )


def evidence(
    node: str,
    *,
    number: int = 1,
    now: float = T0,
    findings: Sequence[Finding] = (),
    drifts: Sequence[Drift] = (),
    events: Sequence[Event] = (),
    directive_number: int = 0,
    posture: Posture = "normal",
    addresses: Sequence[str] = (),
    reset: int = 1,
    reference: bytes | None = None,
    baseline: BaselineRef | None = None,
    pending: BaselineRef | None = None,
) -> Evidence:
    """A report that verified."""
    body = ReportBody(
        node=node,
        number=number,
        boot_id=f"boot-{reset}",
        at=now,
        uptime_s=60.0,
        agent_version="0.1.0",
        posture=posture,
        baseline=baseline,
        pending=pending,
        directive_number=directive_number,
        addresses=list(addresses),
        drifts=list(drifts),
        events=list(events),
        event_log_sha256=digest("log", node),
    )
    boot = BootRecord(
        reset=reset,
        pcrs_sha256=digest("pcrs", node, str(reset)),
        event_log_sha256=digest("log", node),
        findings=list(findings),
    )
    counters = Counters(reset=reset, restart=0, clock=number * 1000, safe=True, firmware_version=2**63 + 1)
    return Evidence(body=body, counters=counters, findings=tuple(findings), boot=boot, reference=reference)


def drift(
    key: str, found: str, *, section: str = "sysctl", repaired: bool = False, culprit: str = ""
) -> Drift:
    """One drift."""
    return Drift(
        section=section, key=key, wanted="1", found=found, since=T0, repaired=repaired, culprit=culprit
    )


def event(seq: int, *, at: float = T0, kind: str = "firewall.healed") -> Event:
    """One event of an agent."""
    return Event(
        seq=seq, at=at, kind=kind, severity="warning", summary=f"event {seq}", detail={"n": str(seq)}
    )


class FleetLab:
    """A fleet and shorthands for what tests do with it all the time."""

    def __init__(self, store: Store, settings: FleetSettings | None = None) -> None:
        self.store = store
        self.fleet = Fleet(store, settings or FleetSettings(breaker=BreakerLimits()))

    async def site(self, name: str = "factory", policy: SitePolicy | None = None) -> None:
        """Make a site."""
        await self.fleet.create_site(name, policy or SitePolicy(), actor=ACTOR, now=T0)

    async def enrol(
        self, node: str, *, site: str = "factory", now: float = T0, tpm: str = "", ak: str = ""
    ) -> Admitted:
        """Enrol a node with a person's approval."""
        claim = request(node, site=site, tpm=tpm, ak=ak)
        enrolment = await self.fleet.begin_enrolment(claim, now=now)
        admitted = await self.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=now)
        if admitted is None:
            await self.fleet.approve(enrolment, actor=ACTOR, now=now)
            admitted = await self.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=now)
        assert admitted is not None
        return admitted

    async def populate(
        self, nodes: int, *, policy: SitePolicy | None = None, site: str = "factory"
    ) -> list[str]:
        """Make a site and so many nodes in it that have reported; return their names."""
        await self.site(site, policy)
        names = [f"{site}-{n}" for n in range(1, nodes + 1)]
        for n, name in enumerate(names, 1):
            await self.enrol(name, site=site)
            await self.report(name, addresses=[f"10.0.0.{n}", f"fd00::{n}"])
        return names

    async def report(self, node: str, *, now: float = T0, obey: bool = True, **what: object) -> Outcome:
        """A report that has accepted the newest directive, unless told otherwise."""
        if obey and "directive_number" not in what:
            what["directive_number"] = (await self.fleet.node(node)).directive_number
        return await self.fleet.take_report(node, evidence(node, now=now, **what), now=now)  # type: ignore[arg-type]

    async def held(self) -> tuple[set[str], set[str]]:
        """Nodes and sites with a hold of their own in force."""
        page = await self.fleet.list_holds(scope=EVERYWHERE, limit=500)
        return {h.node for h in page.items if h.node}, {h.site for h in page.items if h.node is None}
