"""The audit log: list, export line by line, checkpoint, proof of one act, and the key to check them with."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from controller.api.route import MAX_ID, AnyRoute, Call, Limit, Nothing, Route
from controller.audit_records import AuditKeyView, AuditLines, CheckpointView, ProofView
from controller.records import AuditView, Record


class AuditQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acts with a number above `after`, oldest first."""

    after: Annotated[int, Meta(ge=0, le=MAX_ID)] = 0
    limit: Limit = 100


class Audit(Record, frozen=True, kw_only=True):
    """Acts, and the `after` of the next call."""

    items: list[AuditView]
    after: int


async def list_audit(call: Call[AuditQuery, Nothing]) -> Audit:
    """What people and the controller did, and why."""
    items = await call.services.fleet.list_audit(after=call.query.after, limit=call.query.limit)
    return Audit(items=items, after=items[-1].number if items else call.query.after)


async def list_lines(call: Call[AuditQuery, Nothing]) -> AuditLines:
    """The same as the lines that are hashed: what `ringfence audit export` writes."""
    return await call.services.audit.lines(after=call.query.after, limit=call.query.limit)


async def get_checkpoint(call: Call[Nothing, Nothing]) -> CheckpointView:
    """Size and root of the log as of now, signed."""
    return CheckpointView(checkpoint=await call.services.audit.checkpoint(now=call.now))


async def get_proof(call: Call[Nothing, Nothing]) -> ProofView:
    """What proves one act to a third party."""
    return await call.services.audit.proof(call.number("act"), now=call.now)


async def get_key(call: Call[Nothing, Nothing]) -> AuditKeyView:
    """The public key of the log."""
    return AuditKeyView(key=call.services.audit.key.text())


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/audit",
        needs="audit.read",
        about="fleet",
        summary="List what was done, by whom and why",
        handler=list_audit,
        query=AuditQuery,
        body=Nothing,
        reply=Audit,
    ),
    Route(
        method="GET",
        path="/audit/lines",
        needs="audit.read",
        about="fleet",
        summary="Export the audit log, line by line as it is hashed",
        handler=list_lines,
        query=AuditQuery,
        body=Nothing,
        reply=AuditLines,
    ),
    Route(
        method="GET",
        path="/audit/checkpoint",
        needs="audit.read",
        about="fleet",
        summary="Size and root of the audit log, signed now",
        handler=get_checkpoint,
        query=Nothing,
        body=Nothing,
        reply=CheckpointView,
    ),
    Route(
        method="GET",
        path="/audit/{act}/proof",
        needs="audit.read",
        about="fleet",
        summary="Prove one act to a third party",
        handler=get_proof,
        query=Nothing,
        body=Nothing,
        reply=ProofView,
    ),
    Route(
        method="GET",
        path="/audit/key",
        needs="fleet.read",
        about="nothing",
        summary="The public key of the audit log",
        handler=get_key,
        query=Nothing,
        body=Nothing,
        reply=AuditKeyView,
    ),
)
