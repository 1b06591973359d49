"""A known TPM that comes with new keys: its disk was replaced, or somebody's own system runs on the machine.

Which of the two it is, the TPM cannot tell: it proves the machine, and the boot reference, which stays, shows another system.
So a person is asked once, unless the list of EKs names this id or the site's policy has answered beforehand. What the node had
before is revoked in the transaction that binds what it has.
"""

from __future__ import annotations

from contract.messages import Finding
from controller.fleet import acts, incidents
from controller.judge import Suspicion
from controller.store import Transaction, nodes
from controller.store import enrolments as rows
from controller.store.enrolments import EnrolmentRow
from controller.store.nodes import NodeRow


def approver(tx: Transaction, node: str, ek_id: str) -> str | None:
    """Return who lets a known TPM in with new keys, None where a person must be asked.

    The list of EKs does where it names this very id for this EK; the policy of the site that the node is bound to does
    where it says `same-ek`. That EK and new AK live in one TPM has been proved already.
    """
    expected = rows.expected_by_ek(tx, ek_id)
    if expected is not None and expected.node == node:
        return "EK list"
    bound = nodes.load(tx, node)
    if bound is not None and bound.ek_id == ek_id and bound.policy.reenrol == "same-ek":
        return "site policy"
    return None


def ask(tx: Transaction, row: EnrolmentRow, site: str, *, command: str, now: float) -> None:
    """Open an incident with the question and both answers."""
    detail = (
        f"same TPM, new keys: its disk was replaced, or another system runs on it. If that was you: "
        f"{command}; if not: ringfence enrolments reject {row.enrolment} --reason ..."
    )
    suspicion = Suspicion(
        key=_key(row.node),
        kind="identity",
        severity="warning",
        title=f"{row.node} has come with new keys on the same TPM",
        finding=Finding(code="enrolment.new-keys", detail=detail),
    )
    incidents.record(tx, [suspicion], (), node=row.node, site=site, now=now)


def answered(tx: Transaction, node: str, site: str, now: float) -> None:
    """Withdraw the question."""
    incidents.withdraw(tx, node, site, [_key(node)], now)


def replace(tx: Transaction, row: EnrolmentRow, bound: NodeRow, *, by: str, now: float) -> None:
    """Revoke what the node had and bind what it has: one transaction, so there is no moment with both or neither."""
    rows.revoke_key(
        tx, bound.ak_name, node=row.node, certificate_sha256=bound.certificate_sha256, by=by, now=now
    )
    nodes.replace_ak(tx, row.node, ak_public=row.ak_public, ak_name=row.ak_name)
    acts.record(
        tx,
        "enrolment.keys-replaced",
        f"{row.node}: same TPM, new keys, let in by {by}; its AK and certificate from before are revoked",
        actor=by,
        target=row.node,
        reason=row.enrolment,
        now=now,
        severity="warning",
        node=row.node,
        site=bound.site,
    )
    answered(tx, row.node, bound.site, now)


def _key(node: str) -> str:
    return f"identity:new-keys:{node}"
