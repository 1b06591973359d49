"""Use cases of enrolment: from a claim to a node that is bound to one EK, one AK and one certificate.

1. `begin` notes a claim. Nothing is reserved by it: an id belongs to nobody until it is bound (ATTACKS b06).
2. `finish` checks that EK and AK live in one TPM (HMAC under the activated secret).
3. Somebody approves: the list of expected EKs, a one-use token, or a person.
4. `_bind` writes id, EK and AK in one row whose UNIQUE constraints decide every race (b05), and the certificate
   is issued and bound in the transaction that hands it out.

The same TPM with the same AK may enrol again by itself (its disk was lost, not its identity) and gets a new
certificate. The same TPM with another AK needs a person; another TPM under a bound id is refused (b04).
"""

from __future__ import annotations

import hashlib
import hmac

from contract.binding import enrolment_proof_message
from contract.enrolment import proof
from contract.errors import Rejected
from contract.messages import EnrolFinish, Severity
from contract.names import checked_name
from controller.enrolment_records import (
    Admitted,
    EnrolmentRequest,
    EnrolmentView,
    EnrolTokenView,
    PreregistrationView,
)
from controller.fleet import acts, identity, sites
from controller.fleet.paging import cut
from controller.policy import FleetSettings
from controller.records import Issue, NodeIdentity, Page
from controller.store import Refused, Transaction, events, nodes
from controller.store import enrolments as rows
from controller.store.enrolments import EnrolmentRow

MAX_WRONG_PROOFS = 5
BEGUN_LIFETIME_S = 600.0
"""A TPM answers a challenge in seconds; claims that nobody proves must not pile up."""
_EK_ID_CHARS = 64
_SAME_TPM = "the same TPM with the same AK"


def begin(
    tx: Transaction, settings: FleetSettings, request: EnrolmentRequest, *, now: float
) -> str | Refused:
    """See Fleet.begin_enrolment."""
    rows.expire(tx, begun_before=now - BEGUN_LIFETIME_S, proved_before=now - settings.enrolment_lifetime_s)
    ak_name = request.ak_name.hex()
    try:
        if rows.count_open(tx, states=("begun",)) >= settings.max_open_enrolments:
            raise Rejected("enrolment.too-many", "too many enrolments wait for their proof; try again later")
        site = identity.site_of(tx, request, now)
        identity.check_reserved(tx, request.node, request.ek_id)
        identity.check_bound(tx, request.node, request.ek_id, ak_name, another_ak_may_wait=True)
        if site is not None:
            identity.check_trust(tx, site, request.ek_trust)
    except Rejected as rejected:
        return _refuse(tx, request.node, request.ek_id, rejected, now)
    digest = hashlib.sha256(request.secret + request.ek_id.encode() + request.node.encode()).hexdigest()
    enrolment = f"{int(now * 1000):013d}-{digest[:24]}"
    rows.add(
        tx,
        EnrolmentRow(
            enrolment=enrolment,
            node=request.node,
            site=site,
            ek_id=request.ek_id,
            ek_public=request.ek_public,
            ak_public=request.ak_public,
            ak_name=ak_name,
            ek_trust=request.ek_trust,
            csr=request.csr,
            token_sha256=identity.token_digest(request.token) if request.token else None,
            secret=request.secret,
            wrong_proofs=0,
            state="begun",
            replaces=False,
            note="",
            created_at=now,
            decided_at=None,
            decided_by=None,
        ),
    )
    return enrolment


def finish(
    tx: Transaction, settings: FleetSettings, finish: EnrolFinish, issue: Issue, *, now: float, ready: bool
) -> Admitted | Refused | None:
    """See Fleet.finish_enrolment."""
    row = rows.load(tx, finish.enrolment)
    if row is None:
        raise Rejected("enrolment.unknown", "begin again")
    if row.state == "rejected":
        raise Rejected("enrolment.rejected", row.note)
    if row.state == "expired" or row.created_at < now - settings.enrolment_lifetime_s:
        raise Rejected("enrolment.expired", "begin again")
    if not _proved(row, finish.proof):
        return _wrong_proof(tx, row, now)
    newly = False
    if row.state == "begun":
        rows.supersede(tx, node=row.node, ek_id=row.ek_id, without=row.enrolment)
        rows.change(tx, row.enrolment, state="proved", secret=hashlib.sha256(finish.proof).digest())
    if row.state in {"begun", "proved"}:
        try:
            approver = _approver(tx, row, now)
            if approver is None:
                if row.state == "begun":
                    _announce(tx, row, now)
                return None
            _bind(tx, row, site=row.site, by=approver, now=now, another_ak=False)
        except Rejected as rejected:
            rows.change(tx, row.enrolment, state="rejected", note=str(rejected), decided_at=now)
            return _refuse(tx, row.node, row.ek_id, rejected, now)
        newly = True
    if not ready:
        return None
    bound = nodes.load(tx, row.node, lock=True)
    if bound is None or (bound.ek_id, bound.ak_name) != (row.ek_id, row.ak_name):
        raise Rejected("enrolment.expired", "the node was enrolled anew since")
    who = NodeIdentity(node=bound.node, site=bound.site)
    certificate = issue(who, row.csr)
    nodes.set_certificates(
        tx, bound.node, current=certificate.sha256, following=None, not_after=certificate.not_after
    )
    events.add(
        tx,
        "certificate.issued",
        "info",
        f"{bound.node}: certificate issued",
        now=now,
        node=bound.node,
        site=bound.site,
        detail={"sha256": certificate.sha256.hex(), "enrolment": row.enrolment},
    )
    return Admitted(identity=who, certificate=certificate, newly=newly)


def approve(
    tx: Transaction, enrolment: str, *, actor: str, now: float, site: str | None, replace: bool
) -> EnrolmentView:
    """See Fleet.approve."""
    row = _undecided(tx, enrolment)
    if row.state != "proved":
        raise Rejected("enrolment.unproved", "the TPM has not answered the challenge yet")
    _bind(tx, row, site=site or row.site, by=actor, now=now, another_ak=replace)
    return _view(tx, enrolment)


def reject(tx: Transaction, enrolment: str, *, actor: str, reason: str, now: float) -> EnrolmentView:
    """See Fleet.reject."""
    row = _undecided(tx, enrolment)
    why = acts.checked_reason(reason)
    rows.change(tx, enrolment, state="rejected", note=why, decided_at=now, decided_by=actor, secret=b"")
    acts.record(
        tx,
        "enrolment.rejected",
        f"enrolment of {row.node} rejected by {actor}: {why}"[:2048],
        actor=actor,
        target=enrolment,
        reason=why,
        now=now,
        severity="warning",
        node=row.node,
        site=row.site,
    )
    return _view(tx, enrolment)


def preregister(
    tx: Transaction, ek_id: str, *, site: str, node: str | None, actor: str, now: float
) -> PreregistrationView:
    """See Fleet.preregister."""
    if len(ek_id) != _EK_ID_CHARS or any(c not in "0123456789abcdef" for c in ek_id):
        raise Rejected("ek.invalid", "wanted the SHA-256 of the EK's public key, 64 hexadecimal digits")
    if node is not None:
        checked_name(node, "node")
    sites.known(tx, site)
    if rows.expected_by_ek(tx, ek_id) or (node is not None and rows.expected_by_node(tx, node)):
        raise Rejected("preregistration.exists", f"EK {ek_id} or node {node} is expected already")
    for bound_node, bound_ek, _ in nodes.bound(tx, node=node or "", ek_id=ek_id, ak_name=""):
        if bound_ek == ek_id:
            raise Rejected("enrolment.ek-in-use", f"this EK is node {bound_node}")
        raise Rejected("enrolment.identity-conflict", f"node {node} is bound to another EK")
    rows.expect(tx, ek_id, node=node, site=site, actor=actor, now=now)
    acts.record(
        tx,
        "enrolment.preregistered",
        f"EK {ek_id} expected as {node or 'any node'}",
        actor=actor,
        target=ek_id,
        reason="",
        now=now,
        node=node,
        site=site,
    )
    return PreregistrationView(
        ek_id=ek_id, node=node, site=site, created_at=now, created_by=actor, used_at=None
    )


def expected_eks(tx: Transaction) -> frozenset[str]:
    """See Fleet.preregistered_eks."""
    return rows.expected_eks(tx)


def new_token(
    tx: Transaction,
    token_sha256: bytes,
    *,
    site: str,
    node: str | None,
    expires_at: float,
    actor: str,
    now: float,
) -> EnrolTokenView:
    """See Fleet.new_enrol_token."""
    sites.known(tx, site)
    if node is not None:
        checked_name(node, "node")
    if expires_at <= now:
        raise Rejected("token.expired", "it would be void from the start")
    acts.record(
        tx,
        "enrolment.token-made",
        f"one-use token for {node or 'any node'} of site {site}",
        actor=actor,
        target=site,
        reason="",
        now=now,
        node=node,
        site=site,
    )
    return rows.add_token(tx, token_sha256, node=node, site=site, expires_at=expires_at, actor=actor, now=now)


def list_(tx: Transaction, *, state: str | None, after: str | None, limit: int) -> Page[EnrolmentView]:
    """See Fleet.list_enrolments."""
    page = rows.page(tx, state=state, before=after, limit=limit + 1)
    return cut(page, limit, lambda view: view.enrolment)


def list_expected(tx: Transaction, *, after: str | None, limit: int) -> Page[PreregistrationView]:
    """See Fleet.list_preregistrations."""
    return cut(rows.expected_page(tx, after=after, limit=limit + 1), limit, lambda view: view.ek_id)


# -- steps -----------------------------------------------------------------------------------------------


def _proved(row: EnrolmentRow, untrusted_proof: bytes) -> bool:
    if row.state != "begun":
        # The secret itself was forgotten when it was proved.
        return hmac.compare_digest(hashlib.sha256(untrusted_proof).digest(), row.secret)
    message = enrolment_proof_message(
        enrolment=row.enrolment, node=row.node, ek_public=row.ek_public, ak_public=row.ak_public, csr=row.csr
    )
    return bool(row.secret) and hmac.compare_digest(proof(row.secret, message), untrusted_proof)


def _wrong_proof(tx: Transaction, row: EnrolmentRow, now: float) -> Refused:
    wrong = row.wrong_proofs + 1
    values: dict[str, object] = {"wrong_proofs": wrong}
    if wrong >= MAX_WRONG_PROOFS and row.state == "begun":
        values |= {"state": "rejected", "note": "too many wrong proofs", "secret": b"", "decided_at": now}
    rows.change(tx, row.enrolment, **values)
    return _refuse(
        tx, row.node, row.ek_id, Rejected("enrolment.proof", "not the proof for this enrolment"), now
    )


def _approver(tx: Transaction, row: EnrolmentRow, now: float) -> str | None:
    """Return who lets the node in without a person: the binding there is, the EK list or a token."""
    identity.check_reserved(tx, row.node, row.ek_id)
    current = identity.check_bound(tx, row.node, row.ek_id, row.ak_name, another_ak_may_wait=True)
    if current is not None:
        return _SAME_TPM if current == row.ak_name else None
    if rows.expected_by_ek(tx, row.ek_id) is not None:
        return "EK list"
    if row.token_sha256 is not None:
        token = identity.checked_token(tx, row.token_sha256, row.node, now)
        if not rows.use_token(tx, token.id, row.node, now):
            raise Rejected("enrolment.token", "unknown, used, expired or made for another node")
        return f"token {token.id}"
    return None


def _bind(
    tx: Transaction, row: EnrolmentRow, *, site: str | None, by: str, now: float, another_ak: bool
) -> None:
    if site is None:
        raise Rejected("site.missing", "the node named no site: say which")
    identity.check_reserved(tx, row.node, row.ek_id)
    current = identity.check_bound(tx, row.node, row.ek_id, row.ak_name, another_ak_may_wait=another_ak)
    identity.check_trust(tx, site, row.ek_trust)
    if current is None:
        nodes.add(
            tx,
            node=row.node,
            site=site,
            ek_id=row.ek_id,
            ek_public=row.ek_public,
            ak_public=row.ak_public,
            ak_name=row.ak_name,
            ek_trust=row.ek_trust,
            approved_by=by,
            now=now,
        )
        rows.set_expected_used(tx, row.ek_id, now)
    elif current != row.ak_name:
        nodes.replace_ak(tx, row.node, ak_public=row.ak_public, ak_name=row.ak_name)
    rows.change(
        tx,
        row.enrolment,
        state="approved",
        site=site,
        note="",
        replaces=current is not None,
        decided_at=now,
        decided_by=by,
    )
    acts.record(
        tx,
        "enrolment.approved",
        f"{row.node} enrolled at site {site}, approved by {by}",
        actor=by,
        target=row.node,
        reason=row.enrolment,
        now=now,
        node=row.node,
        site=site,
    )


# -- telling ---------------------------------------------------------------------------------------------


def _announce(tx: Transaction, row: EnrolmentRow, now: float) -> None:
    current = identity.check_bound(tx, row.node, row.ek_id, row.ak_name, another_ak_may_wait=True)
    note = "waits for a person"
    severity: Severity = "info"
    if current is not None:
        note, severity = "the same TPM with another AK: waits for a person", "warning"
    rows.change(tx, row.enrolment, note=note)
    events.add(
        tx,
        "enrolment.waiting",
        severity,
        f"enrolment of {row.node}: {note}",
        now=now,
        node=row.node,
        site=row.site,
        detail={"enrolment": row.enrolment, "ek": row.ek_id},
    )


def _refuse(tx: Transaction, node: str, ek_id: str, rejected: Rejected, now: float) -> Refused:
    identity.record_refusal(tx, node, ek_id, rejected, now)
    return Refused(rejected)


def _undecided(tx: Transaction, enrolment: str) -> EnrolmentRow:
    row = rows.load(tx, enrolment)
    if row is None:
        raise Rejected("enrolment.unknown", enrolment[:63])
    if row.state not in rows.OPEN_STATES:
        raise Rejected("enrolment.decided", f"it is {row.state}")
    return row


def _view(tx: Transaction, enrolment: str) -> EnrolmentView:
    row = rows.load(tx, enrolment)
    if row is None:
        raise Rejected("enrolment.unknown", enrolment[:63])
    return row.view()
