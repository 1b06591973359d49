"""The controller's decision, pure: appraise evidence, then decide what follows.

`appraise` turns verified findings, drifts or a rejection into a tier and the suspicions behind it. `decide`
turns fresh suspicions, the site's policy and facts of the fleet into incidents, holds or a recommendation.

Rules that hold whatever the input:
1. A finding whose code is not listed here contraindicates: what nobody has weighed does not pass.
2. Only what is *fresh* (a suspicion that was not there in the record) can isolate. So a release by a person
   stands until something new is seen or the node was well in between.
3. Nothing is isolated past the breaker, and nothing for a new value that so many other nodes have as well:
   that is one update nobody told us about, not many compromises.
4. A failure of our own (`verification.failed`) takes trust away but isolates nobody.

Refuses to do: read a clock, a database or a socket; compare quotes (contract.quote) or boots (contract.boot).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from contract import boot, ima
from contract.errors import Rejected
from contract.messages import Drift, Finding, Posture, Severity, Tier
from controller.breaker import may_isolate_node, may_isolate_site
from controller.policy import BreakerLimits, SitePolicy
from controller.records import IncidentKind, Record

OWN_FAILURE = "verification.failed"

_WEIGHT: tuple[tuple[str, Tier], ...] = (
    ("quote.clock-unsafe", "affirming"),
    ("boot.observe.", "warning"),
    ("ima.observe.", "warning"),
    ("posture.differs", "warning"),
    ("baseline.differs", "warning"),
    ("drift.", "warning"),
    # Late or crossed, not forged: the next report will do. Nothing was accepted.
    ("nonce.", "warning"),
    ("message.", "warning"),
    ("report.malformed", "warning"),
)
_ADVISORY = boot.ADVISORY_CODES | ima.ADVISORY_CODES
"""What `contract` itself calls worth a warning and no more; an exact code, never a prefix."""
_UPDATES = frozenset({"boot.unannounced"})
"""A question to a person: an update that nobody announced. It isolates nobody, however it is answered."""
_RANK: dict[Tier, int] = {"none": 0, "affirming": 1, "warning": 2, "contraindicated": 3}
_FOUND = re.compile(r"found (.+)\Z", re.DOTALL)
MAX_FINDINGS = 64
COUNTED = 1000
"""Other nodes with the same are counted up to here: with every report that shows it, so never to the end of a large fleet."""


class Suspicion(Record, frozen=True, kw_only=True):
    """One reason for distrust, with the key that makes it the same suspicion on another node."""

    key: str
    kind: IncidentKind
    severity: Severity
    title: str
    finding: Finding
    lasting: bool = True
    """False for what the node has already undone."""
    can_isolate: bool = False


class Appraisal(Record, frozen=True, kw_only=True):
    """The result for one piece of evidence."""

    tier: Tier
    findings: list[Finding]
    suspicions: list[Suspicion]


class FleetFacts(Record, frozen=True, kw_only=True):
    """What must be known of the fleet before anything is isolated."""

    fleet_nodes: int
    node_holds_in_window: int
    site_holds_in_window: int
    node_held: bool
    site_held: bool
    node_fenced: bool = False
    """Its neighbours drop its addresses, whether it is isolated or not."""
    others: Mapping[str, int]
    """By suspicion key: nodes that have it, besides the one that is judged."""
    drifting_others: int = 0
    """Other nodes of the site that drifted within the policy's window, each in its own way."""


class Decision(Record, frozen=True, kw_only=True):
    """What is to be done about fresh suspicions."""

    fresh: list[Suspicion]
    hold_node: str = ""
    """The reason, when the node is to be isolated."""
    hold_site: str = ""
    recommend: tuple[str, ...] = ()
    """What a person should look at, and why it was not done."""
    questions: Mapping[str, int] = msgspec.field(default_factory=dict)
    """What a person is asked about updates, with the number of other nodes that report the same."""


def weight(code: str) -> Tier:
    """Return the tier that a finding of this code allows at best."""
    for prefix, tier in _WEIGHT:
        if code.startswith(prefix):
            return tier
    return "warning" if code in _ADVISORY else "contraindicated"


def found_value(finding: Finding) -> str:
    """Return what was found, without what was wanted: the same new value on nodes that began differently is one."""
    match = _FOUND.search(finding.detail)
    return match.group(1) if match else finding.detail


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def key_of(finding: Finding) -> str:
    """Return what makes a finding the same suspicion on another node."""
    place = "" if finding.pcr is None else str(finding.pcr)
    return f"finding:{finding.code}:{place}:{_digest(found_value(finding))}"


def _rejected_key(code: str) -> str:
    return f"rejected:{code[:200]}"


def keys_of(findings: Sequence[Finding], drifts: Sequence[Drift] = ()) -> list[tuple[str, ...]]:
    """Return for each finding the keys under which it may stand in incidents: as a drift, as a finding, as a refusal."""
    of_drifts = {suspicion.finding: suspicion.key for suspicion in map(_suspect_drift, drifts)}
    return [(of_drifts.get(f, key_of(f)), _rejected_key(f.code)) for f in findings]


def _suspect_finding(finding: Finding) -> Suspicion:
    distrusted = weight(finding.code) == "contraindicated"
    return Suspicion(
        key=key_of(finding),
        kind="untrusted" if distrusted else "update" if finding.code in _UPDATES else "drift",
        severity="critical" if distrusted else "warning",
        title=_short(f"{finding.code}: {finding.detail}"),
        finding=finding,
        can_isolate=distrusted,
    )


def _suspect_drift(drift: Drift) -> Suspicion:
    by = f" by {drift.culprit}" if drift.culprit else ""
    mended = " (repaired)" if drift.repaired else ""
    detail = f"{drift.section} {drift.key}{by}{mended}: wanted {drift.wanted}, found {drift.found}"
    return Suspicion(
        key=f"drift:{drift.section}:{_digest(drift.key, drift.found)}",
        kind="drift",
        severity="warning",
        title=_short(f"{drift.section}: {drift.key}{by}{mended}"),
        finding=Finding(code=f"drift.{drift.section}", detail=detail[:2048]),
        lasting=not drift.repaired,
    )


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"


def appraise(
    findings: Sequence[Finding],
    drifts: Sequence[Drift],
    *,
    posture: Posture,
    wanted_posture: Posture,
    obeyed: bool,
) -> Appraisal:
    """Appraise evidence that verified.

    `obeyed`: the node says it has the newest directive, so its posture must be the wanted one. The tier is the
    worst that any finding or unrepaired drift allows; `affirming` only when there is nothing left to say.
    """
    tier: Tier = "affirming"
    kept: list[Finding] = []
    suspicions: list[Suspicion] = []
    said = list(findings)
    if obeyed and posture != wanted_posture:
        detail = f"wanted {wanted_posture}, found {posture}"
        if posture == "isolated":
            detail += ": the node has isolated itself, its events say why; a person releases it"
        said.append(Finding(code="posture.differs", detail=detail))
    for finding in said:
        allowed = weight(finding.code)
        kept.append(finding)
        if allowed != "affirming":
            suspicions.append(_suspect_finding(finding))
        tier = _worse(tier, allowed)
    for drift in drifts:
        suspicion = _suspect_drift(drift)
        suspicions.append(suspicion)
        if not drift.repaired:
            kept.append(suspicion.finding)
            tier = _worse(tier, "warning")
    return Appraisal(tier=tier, findings=kept[:MAX_FINDINGS], suspicions=_unique(suspicions))


def appraise_rejection(rejected: Rejected, before: Tier) -> Appraisal:
    """Appraise evidence that did not verify. The key is the code alone: details of refused bytes are noise, and
    one fault on many nodes at once must be one incident.

    Late or crossed messages leave the tier as it was: nothing was proved, nothing disproved.
    """
    finding = Finding(code=rejected.code[:256], detail=rejected.detail[:2048])
    if weight(rejected.code) != "contraindicated":
        return Appraisal(tier=before, findings=[finding], suspicions=[])
    suspicion = Suspicion(
        key=_rejected_key(rejected.code),
        kind="untrusted",
        severity="critical",
        title=_short(f"evidence refused: {rejected.code}: {rejected.detail}"),
        finding=finding,
        can_isolate=rejected.code != OWN_FAILURE,
    )
    return Appraisal(tier="contraindicated", findings=[finding], suspicions=[suspicion])


def decide(
    appraisal: Appraisal,
    known_keys: Collection[str],
    policy: SitePolicy,
    limits: BreakerLimits,
    facts: FleetFacts,
) -> Decision:
    """Decide what follows from what is fresh in an appraisal. `known_keys`: suspicions already on record."""
    fresh = [s for s in appraisal.suspicions if s.key not in known_keys]
    recommend: list[str] = []
    hold_node, hold_site = "", ""
    grave = [s for s in fresh if s.can_isolate]
    if grave:
        common = shared(grave, limits, facts)
        reason = grave[0].title
        if "untrusted" in policy.isolate_node_on and not facts.node_held:
            hold_node = _try(reason, "node", common or node_brake(limits, facts), recommend)
        if "untrusted" in policy.isolate_site_on and not facts.site_held:
            hold_site = _try(reason, "site", common or site_brake(limits, facts), recommend)
    drifting = [s for s in fresh if s.kind == "drift" and not shared([s], limits, facts)]
    rule = policy.drifting_nodes
    if (
        rule
        and drifting
        and not hold_site
        and not facts.site_held
        and facts.drifting_others + 1 >= rule.count
    ):
        reason = f"{facts.drifting_others + 1} nodes drifted within {rule.window_s:g} s"
        hold_site = _try(reason, "site", site_brake(limits, facts), recommend)
    questions = {_question(s): facts.others.get(s.key, 0) for s in fresh if s.kind == "update"}
    return Decision(
        fresh=fresh, hold_node=hold_node, hold_site=hold_site, recommend=tuple(recommend), questions=questions
    )


def drifts_alone(fresh: Sequence[Suspicion], limits: BreakerLimits, facts: FleetFacts) -> bool:
    """Whether a node drifted in a way that is not one that many others have as well."""
    return any(s.kind == "drift" and not shared([s], limits, facts) for s in fresh)


def shared(suspicions: Sequence[Suspicion], limits: BreakerLimits, facts: FleetFacts) -> str:
    """Return why nothing is done, when every one of them is a value that enough other nodes have as well.

    One value of its own is enough to be a suspect: an attacker must not hide behind an update.
    """
    others = [facts.others.get(s.key, 0) for s in suspicions]
    if others and min(others) >= limits.same_value_nodes:
        return f"the same new value on {many(min(others))} other nodes: looks like an update nobody told us about"
    return ""


def many(others: int) -> str:
    """Return a number of other nodes as it is said; they are counted no further than COUNTED."""
    return str(others) if others < COUNTED else f"{COUNTED} or more"


def _question(suspicion: Suspicion) -> str:
    """Return what a person is asked about an update; the same words for the same new value, on whatever node."""
    return _short(f"accept it, or look at the nodes: found {found_value(suspicion.finding)}")


def node_brake(limits: BreakerLimits, facts: FleetFacts) -> str:
    """Return why no further node may be isolated or fenced, or nothing."""
    return may_isolate_node(
        limits, fleet_nodes=facts.fleet_nodes, placed_in_window=facts.node_holds_in_window
    )


def site_brake(limits: BreakerLimits, facts: FleetFacts) -> str:
    """Return why no further site may be isolated, or nothing."""
    return may_isolate_site(limits, placed_in_window=facts.site_holds_in_window)


def _try(reason: str, target: str, why_not: str, recommend: list[str]) -> str:
    if why_not:
        recommend.append(f"isolate the {target}: not done, {why_not}")
        return ""
    return reason


def _worse(one: Tier, other: Tier) -> Tier:
    return one if _RANK[one] >= _RANK[other] else other


def _unique(suspicions: Sequence[Suspicion]) -> list[Suspicion]:
    return list({s.key: s for s in suspicions}.values())
