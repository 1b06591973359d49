"""The use cases of plans and rollouts, one transaction each. A part of `controller.fleet.Fleet`, which see."""

from __future__ import annotations

import asyncio

import msgspec

from contract.errors import Rejected
from controller.fleet import plans, rollouts
from controller.permissions import Scope
from controller.records import Page
from controller.rollout_records import NewPlan, NewRollout, PlanView, RolloutNode, RolloutView
from controller.store import Store
from controller.store import rollouts as rows


class Rolling:
    """Plans and rollouts over one store."""

    _store: Store

    async def make_plan(
        self, new: NewPlan, *, scope: Scope, actor: str, now: float, ask: plans.Ask = plans.nobody_tells
    ) -> PlanView:
        """Say what a baseline would change, and keep it under a number; no rule is sent. The selector means nodes in scope,
        now and when it is carried out. `ask` tells what nodes have open. Raises Rejected `selector.*`,
        `baseline.unknown`, `plan.nobody`, `plan.too-many`."""
        found = await self._store.look(lambda tx: plans.gather(tx, new, scope))
        plan = await asyncio.to_thread(plans.think, found, actor=actor, now=now)
        plan = msgspec.structs.replace(plan, impact=await plans.foretell(found, plan, ask))
        return await self._store.run(lambda tx: rows.add_plan(tx, plan))

    async def plan(self, plan: int) -> PlanView:
        """One plan. Raises Rejected `plan.unknown`."""
        found = await self._store.run(lambda tx: rows.plan(tx, plan))
        if found is None:
            raise Rejected("plan.unknown", str(plan))
        return found

    async def request_rollout(self, new: NewRollout, *, actor: str, now: float) -> RolloutView:
        """Ask to carry out a plan; sends nothing. Raises Rejected `plan.unknown`, `plan.changed`, `plan.nobody`,
        `rollout.exists`, `rollout.wave`, `window.*`, `reason.missing`."""
        return await self._store.run(lambda tx: rollouts.request(tx, new, actor=actor, now=now))

    async def approve_rollout(self, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
        """Let it begin. Raises Rejected `rollout.unknown`, `rollout.decided`, `rollout.same-person`, `reason.missing`."""
        return await self._store.run(
            lambda tx: rollouts.approve(tx, rollout, actor=actor, reason=reason, now=now)
        )

    async def pause_rollout(self, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
        """Send nothing more until it is resumed. Raises Rejected `rollout.unknown`, `rollout.decided`, `reason.missing`."""
        return await self._store.run(
            lambda tx: rollouts.pause(tx, rollout, actor=actor, reason=reason, now=now)
        )

    async def resume_rollout(self, rollout: int, *, actor: str, reason: str, now: float) -> RolloutView:
        """Go on with one that was paused or has halted. Raises Rejected as `pause_rollout`."""
        return await self._store.run(
            lambda tx: rollouts.resume(tx, rollout, actor=actor, reason=reason, now=now)
        )

    async def abort_rollout(
        self, rollout: int, *, actor: str, reason: str, now: float
    ) -> tuple[RolloutView, list[str]]:
        """End it; nodes that have not taken the baseline get their choice from before. Returns the nodes whose directive is
        due as well. Raises Rejected as `pause_rollout`."""
        return await self._store.run(
            lambda tx: rollouts.abort(tx, rollout, actor=actor, reason=reason, now=now)
        )

    async def advance_rollouts(self, *, now: float) -> list[str]:
        """Take the next step of every running rollout; returns the nodes whose directive is due. Call every few seconds."""
        return await self._store.run(lambda tx: rollouts.advance(tx, now=now))

    async def rollout(self, rollout: int, *, now: float) -> RolloutView:
        """One rollout. Raises Rejected `rollout.unknown`."""
        return await self._store.run(lambda tx: rollouts.get(tx, rollout, now=now))

    async def list_rollouts(
        self,
        *,
        scope: Scope,
        state: str | None = None,
        after: str | None = None,
        limit: int = 100,
        now: float,
    ) -> Page[RolloutView]:
        """Newest first: those whose nodes are all in scope."""
        return await self._store.run(
            lambda tx: rollouts.list_(tx, scope=scope, state=state, after=after, limit=limit, now=now)
        )

    async def list_rollout_nodes(
        self, rollout: int, *, after: str | None = None, limit: int = 100
    ) -> Page[RolloutNode]:
        """By name. Raises Rejected `rollout.unknown`."""
        return await self._store.run(lambda tx: rollouts.list_nodes(tx, rollout, after=after, limit=limit))
