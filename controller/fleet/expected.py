"""Use cases of who is expected: endorsement keys known in advance, and one-use tokens for technicians."""

from __future__ import annotations

from contract.errors import Rejected
from contract.names import checked_name
from controller.enrolment_records import EnrolTokenView, PreregistrationView
from controller.fleet import acts, sites
from controller.fleet.paging import cut
from controller.permissions import Scope
from controller.records import Page
from controller.store import Transaction, nodes
from controller.store import enrolments as rows

_EK_ID_CHARS = 64


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


def list_expected(
    tx: Transaction, *, scope: Scope, after: str | None, limit: int
) -> Page[PreregistrationView]:
    """See Fleet.list_preregistrations."""
    page = rows.expected_page(tx, scope=scope, after=after, limit=limit + 1)
    return cut(page, limit, lambda view: view.ek_id)
