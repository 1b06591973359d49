"""Use cases of sessions: which certificate opens one, and what verifying its reports needs."""

from __future__ import annotations

import msgspec

from contract.errors import Rejected
from controller.records import Issue, IssuedCertificate, NodeIdentity, SessionRecord
from controller.store import Refused, Transaction, events, nodes, notices, replicas
from controller.store.nodes import NodeRow


def known(tx: Transaction, node: str, *, lock: bool = False, over: bytes | None = None) -> NodeRow:
    """Return the node. Raises Rejected `session.unknown-node`.

    `over` is the SHA-256 of the certificate of the session that asks. The node may have enrolled anew since it was opened,
    at another controller perhaps: then what comes over it is nobody's word, good or bad (`session.certificate`; b04).
    """
    row = nodes.load(tx, node, lock=lock)
    if row is None:
        raise Rejected("session.unknown-node", node[:63])
    if over is not None and over not in {row.certificate_sha256, row.next_certificate_sha256}:
        raise Rejected("session.certificate", f"not the certificate that is bound to {node}")
    return row


def record_of(row: NodeRow) -> SessionRecord:
    """What a session holds of its node."""
    return SessionRecord(
        node=row.node,
        site=row.site,
        ek_public=row.ek_public,
        ak_public=row.ak_public,
        certificate_sha256=row.certificate_sha256 or b"",
        interval_s=row.policy.interval_s,
        counters=row.state.counters,
        boot=row.state.boot,
        ima=row.state.ima,
        baseline=row.baseline,
        announced=row.announced,
        directive_number=row.directive_number,
        epoch=row.session_epoch,
    )


def open_session(
    tx: Transaction, node: str, certificate_sha256: bytes, *, own: str, now: float
) -> SessionRecord | Refused:
    """See Fleet.open_session."""
    row = known(tx, node, lock=True)
    if certificate_sha256 == row.next_certificate_sha256:
        nodes.set_certificates(
            tx, node, current=certificate_sha256, following=None, not_after=row.certificate_not_after
        )
    elif certificate_sha256 != row.certificate_sha256:  # also when none was handed out yet
        rejected = Rejected("session.certificate", f"not the certificate that is bound to {node}")
        events.add(
            tx,
            "session.refused",
            "critical",
            f"{node}: a session with a certificate that is not bound to it",
            now=now,
            node=node,
            site=row.site,
            detail={"code": rejected.code, "presented_sha256": certificate_sha256.hex()},
        )
        return Refused(rejected)
    epoch = row.session_epoch + 1
    replicas.take(tx, node, own, epoch)
    if row.connected and row.session_holder not in ("", own):
        notices.taken(tx, {node: epoch})
    return msgspec.structs.replace(record_of(row), certificate_sha256=certificate_sha256, epoch=epoch)


def check_certificate(tx: Transaction, node: str, certificate_sha256: bytes) -> None:
    """See Fleet.check_certificate."""
    known(tx, node, over=certificate_sha256)


def session(tx: Transaction, node: str) -> SessionRecord:
    """See Fleet.session."""
    return record_of(known(tx, node))


def renew_certificate(
    tx: Transaction, node: str, csr: bytes, issue: Issue, *, now: float, over: bytes | None = None
) -> IssuedCertificate:
    """See Fleet.renew_certificate."""
    row = known(tx, node, lock=True, over=over)
    issued = issue(NodeIdentity(node=node, site=row.site), csr)
    nodes.set_certificates(
        tx, node, current=row.certificate_sha256, following=issued.sha256, not_after=issued.not_after
    )
    events.add(
        tx, "certificate.renewed", "info", f"{node}: certificate renewed", now=now, node=node, site=row.site
    )
    return issued
