"""Use cases of enrolment: from a claim to a node that is bound to one EK, one AK and one certificate.

1. `begin` notes a claim. Nothing is reserved by it: an id belongs to nobody until it is bound (ATTACKS b06).
2. `finish` checks that EK and AK live in one TPM (HMAC under the activated secret).
3. Somebody approves: the list of expected EKs, a one-use token, or a person.
4. `_bind` writes id, EK and AK in one row whose UNIQUE constraints decide every race (b05), and the certificate
   is issued and bound in the transaction that hands it out.

The same TPM with the same AK may enrol again by itself and gets a new certificate. The same TPM with new keys (its disk was
replaced) is let in where its EK is expected under that very id or the site's policy says so; else a person says it once. Then
the AK and every certificate from before are revoked in the transaction that binds the new ones, while the boot reference
stays: what boots now is held against what booted before. Another TPM under a bound id is refused (b04), and so is a revoked AK.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from contract.binding import enrolment_proof_message
from contract.enrolment import proof
from contract.errors import Rejected
from contract.messages import EnrolFinish, Severity
from controller import tpmrecord
from controller.enrolment_records import Admitted, DevIds, EnrolmentKeys, EnrolmentRequest, EnrolmentView
from controller.fleet import acts, identity, newkeys
from controller.fleet.paging import cut
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import Issue, NodeIdentity, Page
from controller.store import Refused, Transaction, events, nodes
from controller.store import enrolments as rows
from controller.store.enrolments import EnrolmentRow

MAX_WRONG_PROOFS = 5
BEGUN_LIFETIME_S = 600.0
"""A TPM answers a challenge in seconds; claims that nobody proves must not pile up."""
MAX_NOTES = 16
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
            identity.check_trust(tx, site, request.ek_trust, request.tpm.kind)
        identity.check_not_revoked(tx, ak_name)
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
            tpm=tpmrecord.stored(request.tpm),
        ),
    )
    return enrolment


def keys(tx: Transaction, enrolment: str) -> EnrolmentKeys | None:
    """See Fleet.enrolment_keys."""
    row = rows.load(tx, enrolment)
    if row is None or row.state != "begun":
        return None
    return EnrolmentKeys(node=row.node, ek_public=row.ek_public, ak_public=row.ak_public)


def finish(
    tx: Transaction,
    settings: FleetSettings,
    finish: EnrolFinish,
    issue: Issue,
    *,
    now: float,
    ready: bool,
    devids: DevIds,
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
        row = _with_devids(tx, row, devids, now)
    if row.state in {"begun", "proved"}:
        try:
            approver = _approver(tx, row, now)
            if approver is None:
                if row.state == "begun":
                    _announce(tx, row, now)
                return None
            _bind(tx, row, site=row.site, by=approver, now=now, another_ak=True)
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
    if row.replaces and (bound := nodes.load(tx, row.node)) is not None:
        newkeys.answered(tx, row.node, bound.site, now)
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


def list_(
    tx: Transaction, *, scope: Scope, state: str | None, after: str | None, limit: int
) -> Page[EnrolmentView]:
    """See Fleet.list_enrolments."""
    page = rows.page(tx, state=state, scope=scope, before=after, limit=limit + 1)
    return cut(page, limit, lambda view: view.enrolment)


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
        return _SAME_TPM if current == row.ak_name else newkeys.approver(tx, row.node, row.ek_id)
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
    """Bind id, EK and AK, whoever approved it. `another_ak` says that the approver knows of the change of keys."""
    identity.check_reserved(tx, row.node, row.ek_id)
    current = identity.check_bound(tx, row.node, row.ek_id, row.ak_name, another_ak_may_wait=another_ak)
    identity.check_not_revoked(tx, row.ak_name)
    bound = None if current is None else nodes.load(tx, row.node, lock=True)
    if bound is not None:
        site = bound.site  # enrolling anew moves no node to another site
    if site is None:
        raise Rejected("site.missing", "the node named no site: say which")
    identity.check_trust(tx, site, row.ek_trust, tpmrecord.read(row.tpm).kind)
    if bound is None:
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
            tpm=row.tpm,
        )
        rows.set_expected_used(tx, row.ek_id, now)
    else:
        nodes.set_tpm(tx, row.node, row.tpm)
        if bound.ak_name != row.ak_name:
            newkeys.replace(tx, row, bound, by=by, now=now)
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


def _with_devids(tx: Transaction, row: EnrolmentRow, devids: DevIds, now: float) -> EnrolmentRow:
    """Note which device identities came with the proof, and say of those that were not believed why."""
    if not devids.proved and not devids.refused:
        return row
    record = tpmrecord.read(row.tpm)
    record = msgspec.structs.replace(
        record, devids=devids.proved, notes=(*record.notes, *devids.refused)[:MAX_NOTES]
    )
    row = msgspec.structs.replace(row, tpm=tpmrecord.stored(record))
    rows.change(tx, row.enrolment, tpm=row.tpm)
    for refused in devids.refused:
        events.add(
            tx,
            "devid.refused",
            "warning",
            f"{row.node}: a device identity is not believed: {refused}"[:2048],
            now=now,
            node=row.node,
            site=row.site,
            detail={"enrolment": row.enrolment},
        )
    return row


# -- telling ---------------------------------------------------------------------------------------------


def _announce(tx: Transaction, row: EnrolmentRow, now: float) -> None:
    """Tell people that somebody waits; a known TPM with new keys is a question of its own, with its answer beside it."""
    bound = nodes.load(tx, row.node)
    note = "waits for a person"
    severity: Severity = "info"
    if bound is not None:
        note, severity = "same TPM, new keys: waits for a person", "warning"
    rows.change(tx, row.enrolment, note=note, replaces=bound is not None)
    waiting = _view(tx, row.enrolment)
    events.add(
        tx,
        "enrolment.waiting",
        severity,
        f"enrolment of {row.node}: {note}: {waiting.approve_with}",
        now=now,
        node=row.node,
        site=row.site,
        detail={"enrolment": row.enrolment, "ek": row.ek_id, "command": waiting.approve_with},
    )
    if bound is not None:
        newkeys.ask(tx, row, bound.site, command=waiting.approve_with, now=now)


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
