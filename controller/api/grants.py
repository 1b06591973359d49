"""Grants: request, approve, list, look at, revoke; break-glass codes: issue, list, revoke."""

from __future__ import annotations

import asyncio

from contract.grant import CodeHash, hashed, new_code
from contract.messages import Name
from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.fleet.subjects import Subject
from controller.grant_records import (
    CodeList,
    GrantChange,
    GrantRequest,
    GrantView,
    IssuedCode,
    IssuedCodes,
    NewCodes,
)
from controller.records import Change, Page


class GrantQuery(Paging, frozen=True, kw_only=True):
    """Which grants; `all` lists those that are over too."""

    node: Name | None = None
    site: Name | None = None
    all: bool = False


async def list_grants(call: Call[GrantQuery, Nothing]) -> Page[GrantView]:
    """Grants, newest first."""
    wanted = call.query
    return await call.services.fleet.list_grants(
        scope=call.scope,
        node=wanted.node,
        site=wanted.site,
        ended=wanted.all,
        after=wanted.cursor,
        limit=wanted.limit,
        now=call.now,
    )


async def get_grant(call: Call[Nothing, Nothing]) -> GrantView:
    """One grant, and what the node told of it."""
    return await call.services.fleet.grant(call.number("grant"), now=call.now)


async def request_grant(call: Call[Nothing, GrantRequest]) -> GrantView:
    """Ask for access. Opens nothing until somebody approves it."""
    return await call.services.fleet.request_grant(call.body, actor=call.person.name, now=call.now)


async def approve_grant(call: Call[Nothing, Reasoned]) -> GrantChange:
    """Approve a grant and tell its node at once."""
    change = await call.services.fleet.approve_grant(
        call.number("grant"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(Change(affected=change.affected), call.now)
    return change


async def revoke_grant(call: Call[Nothing, Reasoned]) -> GrantChange:
    """Revoke a grant and tell its node at once."""
    change = await call.services.fleet.revoke_grant(
        call.number("grant"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(Change(affected=change.affected), call.now)
    return change


async def list_codes(call: Call[Nothing, Nothing]) -> CodeList:
    """Codes of one node, without the codes."""
    return CodeList(items=await call.services.fleet.list_codes(call.name("node")))


async def issue_codes(call: Call[Nothing, NewCodes]) -> IssuedCodes:
    """Make codes, tell the node their hashes, and show them this once."""
    node, codes = call.name("node"), [new_code() for _ in range(call.body.count)]
    # Hashed before the transaction: the slow part belongs neither there nor on the loop. The ids follow.
    slow = await asyncio.to_thread(lambda: [hashed(1, code, node) for code in codes])
    issued: list[IssuedCode] = []

    def numbered(ids: list[int]) -> list[CodeHash]:
        issued[:] = [IssuedCode(id=number, code=code) for number, code in zip(ids, codes, strict=True)]
        return [
            CodeHash(id=number, salt=each.salt, hash=each.hash)
            for number, each in zip(ids, slow, strict=True)
        ]

    change = await call.services.fleet.issue_codes(
        node, len(codes), numbered, actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(change, call.now)
    return IssuedCodes(node=node, items=issued)


async def revoke_code(call: Call[Nothing, Reasoned]) -> Change:
    """Make a code useless, end what it opened, and tell the node at once."""
    change = await call.services.fleet.revoke_code(
        call.name("node"),
        call.number("code"),
        actor=call.person.name,
        reason=call.body.reason,
        now=call.now,
    )
    await call.services.tell(change, call.now)
    return change


def _request_names(body: GrantRequest) -> list[Subject]:
    return [Subject("node", body.node)]


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/grants",
        needs="fleet.read",
        about="listed",
        summary="List grants",
        handler=list_grants,
        query=GrantQuery,
        body=Nothing,
        reply=Page[GrantView],
    ),
    Route(
        method="POST",
        path="/grants",
        needs="grant.request",
        about="named",
        names=_request_names,
        summary="Ask for access",
        handler=request_grant,
        query=Nothing,
        body=GrantRequest,
        reply=GrantView,
        status=201,
    ),
    Route(
        method="GET",
        path="/grants/{grant}",
        needs="fleet.read",
        about="grant",
        summary="Look at one grant and its use",
        handler=get_grant,
        query=Nothing,
        body=Nothing,
        reply=GrantView,
    ),
    Route(
        method="POST",
        path="/grants/{grant}/approve",
        needs="grant.approve",
        about="grant",
        summary="Approve a grant",
        handler=approve_grant,
        query=Nothing,
        body=Reasoned,
        reply=GrantChange,
    ),
    Route(
        method="POST",
        path="/grants/{grant}/revoke",
        needs="grant.revoke",
        about="grant",
        summary="Revoke a grant",
        handler=revoke_grant,
        query=Nothing,
        body=Reasoned,
        reply=GrantChange,
    ),
    Route(
        method="GET",
        path="/nodes/{node}/break-glass",
        needs="fleet.read",
        about="node",
        summary="List a node's break-glass codes, without the codes",
        handler=list_codes,
        query=Nothing,
        body=Nothing,
        reply=CodeList,
    ),
    Route(
        method="POST",
        path="/nodes/{node}/break-glass",
        needs="break-glass.issue",
        about="node",
        summary="Issue break-glass codes for a node; they are shown this once",
        handler=issue_codes,
        query=Nothing,
        body=NewCodes,
        reply=IssuedCodes,
        status=201,
    ),
    Route(
        method="POST",
        path="/nodes/{node}/break-glass/{code}/revoke",
        needs="break-glass.revoke",
        about="node",
        summary="Revoke a break-glass code",
        handler=revoke_code,
        query=Nothing,
        body=Reasoned,
        reply=Change,
    ),
)
