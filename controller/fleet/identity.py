"""Who may have which identity: the checks behind every step of an enrolment, and what is told of a refusal.

Reads only. What two of these checks both let through at the same moment is decided by the UNIQUE constraints
of the table that the binding is written to.
"""

from __future__ import annotations

import hashlib

from contract.enrolment import check_hardware
from contract.errors import Rejected
from contract.messages import Finding
from contract.tpmvendor import TpmKind
from controller.enrolment_records import EnrolmentRequest, EnrolTokenView
from controller.fleet import incidents, sites
from controller.judge import Suspicion
from controller.records import EkTrust
from controller.store import Transaction, events, nodes
from controller.store import enrolments as rows

REPEAT_S = 60.0
"""The same refusal about the same id is written down once in so long: anybody may knock."""
_ABOUT_IDENTITY = frozenset(
    {
        "enrolment.identity-conflict",
        "enrolment.ek-in-use",
        "enrolment.reserved",
        "enrolment.proof",
        "enrolment.ak-revoked",
        "ek.revoked",
    }
)


def token_digest(token: str) -> bytes:
    """What a one-use token is stored and found by."""
    return hashlib.sha256(token.encode()).digest()


def site_of(tx: Transaction, request: EnrolmentRequest, now: float) -> str | None:
    """Return the site, the surest source first: the EK list, the token, the node's own word."""
    expected = rows.expected_by_ek(tx, request.ek_id)
    if expected is not None:
        return expected.site
    if request.token:
        return checked_token(tx, token_digest(request.token), request.node, now).site
    return None if request.site is None else sites.known(tx, request.site).site


def checked_token(tx: Transaction, token_sha256: bytes, node: str, now: float) -> EnrolTokenView:
    """Return the token if it is good for this node now. Raises Rejected `enrolment.token`."""
    token = rows.token(tx, token_sha256)
    if (
        token is None
        or token.used_at is not None
        or token.expires_at <= now
        or token.node not in {None, node}
    ):
        # One answer for all of them: whoever guesses learns nothing.
        raise Rejected("enrolment.token", "unknown, used, expired or made for another node")
    return token


def check_reserved(tx: Transaction, node: str, ek_id: str) -> None:
    """Raise Rejected `enrolment.reserved` where id or EK are expected otherwise (ATTACKS b06)."""
    by_node = rows.expected_by_node(tx, node)
    if by_node is not None and by_node.ek_id != ek_id:
        raise Rejected("enrolment.reserved", f"node {node} is expected with another EK")
    by_ek = rows.expected_by_ek(tx, ek_id)
    if by_ek is not None and by_ek.node not in {None, node}:
        raise Rejected("enrolment.reserved", "this EK is expected as another node")


def check_bound(
    tx: Transaction, node: str, ek_id: str, ak_name: str, *, another_ak_may_wait: bool
) -> str | None:
    """Return the AK name that is bound to this node and EK, None where nothing is. Refuse every other mixture."""
    current: str | None = None
    for bound_node, bound_ek, bound_ak in nodes.bound(tx, node=node, ek_id=ek_id, ak_name=ak_name):
        if bound_node == node and bound_ek != ek_id:
            raise Rejected("enrolment.identity-conflict", f"node {node} is bound to another TPM")
        if bound_node != node and bound_ek == ek_id:
            raise Rejected("enrolment.ek-in-use", f"this TPM is node {bound_node}")
        if bound_node != node:
            raise Rejected("enrolment.identity-conflict", "this AK is bound to another node")
        current = bound_ak
    if current not in {None, ak_name} and not another_ak_may_wait:
        raise Rejected(
            "enrolment.identity-conflict", f"node {node} has another AK: say that it is to be replaced"
        )
    return current


def check_trust(tx: Transaction, site: str, ek_trust: EkTrust, kind: TpmKind) -> None:
    """Raise Rejected `enrolment.ek-untrusted` where the site demands a proved EK, `ek.*` where it demands hardware (b07)."""
    policy = sites.known(tx, site).policy
    if ek_trust == "unverified" and policy.require_tpm:
        raise Rejected(
            "enrolment.ek-untrusted",
            f"site {site} demands an EK with a certificate to a configured root, or one that is expected",
        )
    if policy.require_hardware_tpm:
        check_hardware(kind, ek_trust)


def check_not_revoked(tx: Transaction, ak_name: str) -> None:
    """Raise Rejected `enrolment.ak-revoked` for an AK that was replaced: an old disk has come back."""
    if rows.is_revoked(tx, ak_name):
        raise Rejected(
            "enrolment.ak-revoked",
            "this AK was replaced; let the agent make new keys (empty its state folder)",
        )


def record_refusal(tx: Transaction, node: str, ek_id: str, rejected: Rejected, now: float) -> None:
    """Write a refused enrolment down; one that touches a bound identity becomes an incident."""
    if events.said_since(tx, rejected.code, node, now - REPEAT_S):
        return
    identity = rejected.code in _ABOUT_IDENTITY
    events.add(
        tx,
        rejected.code,
        "critical" if identity else "warning",
        f"enrolment of {node} refused: {rejected.detail}"[:2048],
        now=now,
        node=node,
        detail={"code": rejected.code, "ek": ek_id},
    )
    bound = nodes.load(tx, node)
    if bound is not None and identity:
        suspicion = Suspicion(
            key=f"identity:{node}",
            kind="identity",
            severity="critical",
            title=f"somebody else claims to be {node}",
            finding=Finding(code=rejected.code, detail=f"{rejected.detail} (EK {ek_id})"[:2048]),
        )
        incidents.record(tx, [suspicion], (), node=node, site=bound.site, now=now)
