"""Plans and rollouts: say what would happen, then let it happen wave by wave."""

from __future__ import annotations

from controller.api.route import AnyRoute, Call, Nothing, Paging, Reasoned, Route
from controller.fleet.subjects import Subject
from controller.permissions import Permission
from controller.records import Change, Page
from controller.rollout_records import (
    NewPlan,
    NewRollout,
    PlanView,
    RolloutNode,
    RolloutState,
    RolloutView,
)


class RolloutQuery(Paging, frozen=True, kw_only=True):
    """Which rollouts."""

    state: RolloutState | None = None


async def make_plan(call: Call[Nothing, NewPlan]) -> PlanView:
    """Say what a baseline would change, node by node, and which open connections its rules would cut. The nodes that are
    connected are asked for those, at whichever controller; nothing else is sent. The selector means nodes in scope."""
    return await call.services.fleet.make_plan(
        call.body,
        scope=call.scope,
        actor=call.person.name,
        now=call.now,
        ask=call.services.sockets_of,
    )


async def get_plan(call: Call[Nothing, Nothing]) -> PlanView:
    """One plan, as it was made."""
    return await call.services.fleet.plan(call.number("plan"))


async def request_rollout(call: Call[Nothing, NewRollout]) -> RolloutView:
    """Ask to carry out a plan; it begins when it is approved."""
    return await call.services.fleet.request_rollout(call.body, actor=call.person.name, now=call.now)


async def list_rollouts(call: Call[RolloutQuery, Nothing]) -> Page[RolloutView]:
    """Rollouts, newest first."""
    wanted = call.query
    return await call.services.fleet.list_rollouts(
        scope=call.scope, state=wanted.state, after=wanted.cursor, limit=wanted.limit, now=call.now
    )


async def get_rollout(call: Call[Nothing, Nothing]) -> RolloutView:
    """One rollout."""
    return await call.services.fleet.rollout(call.number("rollout"), now=call.now)


async def list_rollout_nodes(call: Call[Paging, Nothing]) -> Page[RolloutNode]:
    """How far each node of a rollout is."""
    return await call.services.fleet.list_rollout_nodes(
        call.number("rollout"), after=call.query.cursor, limit=call.query.limit
    )


async def approve_rollout(call: Call[Nothing, Reasoned]) -> RolloutView:
    """Let a rollout begin."""
    return await call.services.fleet.approve_rollout(
        call.number("rollout"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def pause_rollout(call: Call[Nothing, Reasoned]) -> RolloutView:
    """Send nothing more until it is resumed."""
    return await call.services.fleet.pause_rollout(
        call.number("rollout"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def resume_rollout(call: Call[Nothing, Reasoned]) -> RolloutView:
    """Go on with one that was paused or has halted."""
    return await call.services.fleet.resume_rollout(
        call.number("rollout"), actor=call.person.name, reason=call.body.reason, now=call.now
    )


async def abort_rollout(call: Call[Nothing, Reasoned]) -> RolloutView:
    """End it; nodes that have not taken the baseline keep the one from before."""
    view, affected = await call.services.fleet.abort_rollout(
        call.number("rollout"), actor=call.person.name, reason=call.body.reason, now=call.now
    )
    await call.services.tell(Change(affected=affected), call.now)
    return view


def _plan_named(body: NewRollout) -> list[Subject]:
    return [Subject("plan", str(body.plan))]


def _act(verb: str, needs: Permission, summary: str, handler: object) -> AnyRoute:
    return Route(
        method="POST",
        path=f"/rollouts/{{rollout}}/{verb}",
        needs=needs,
        about="rollout",
        summary=summary,
        handler=handler,  # type: ignore[arg-type]
        query=Nothing,
        body=Reasoned,
        reply=RolloutView,
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/plans",
        needs="rollout.request",
        about="listed",
        summary="Plan a baseline for the nodes that a selector means",
        handler=make_plan,
        query=Nothing,
        body=NewPlan,
        reply=PlanView,
        status=201,
    ),
    Route(
        method="GET",
        path="/plans/{plan}",
        needs="fleet.read",
        about="plan",
        summary="Look at one plan",
        handler=get_plan,
        query=Nothing,
        body=Nothing,
        reply=PlanView,
    ),
    Route(
        method="GET",
        path="/rollouts",
        needs="fleet.read",
        about="listed",
        summary="List rollouts",
        handler=list_rollouts,
        query=RolloutQuery,
        body=Nothing,
        reply=Page[RolloutView],
    ),
    Route(
        method="POST",
        path="/rollouts",
        needs="rollout.request",
        about="named",
        names=_plan_named,
        summary="Ask to carry out a plan",
        handler=request_rollout,
        query=Nothing,
        body=NewRollout,
        reply=RolloutView,
        status=201,
    ),
    Route(
        method="GET",
        path="/rollouts/{rollout}",
        needs="fleet.read",
        about="rollout",
        summary="Look at one rollout",
        handler=get_rollout,
        query=Nothing,
        body=Nothing,
        reply=RolloutView,
    ),
    Route(
        method="GET",
        path="/rollouts/{rollout}/nodes",
        needs="fleet.read",
        about="rollout",
        summary="How far each node of a rollout is",
        handler=list_rollout_nodes,
        query=Paging,
        body=Nothing,
        reply=Page[RolloutNode],
    ),
    _act("approve", "rollout.approve", "Let a rollout begin", approve_rollout),
    _act("pause", "rollout.act", "Pause a rollout", pause_rollout),
    _act("resume", "rollout.act", "Resume a rollout that was paused or has halted", resume_rollout),
    _act("abort", "rollout.act", "Abort a rollout", abort_rollout),
)
