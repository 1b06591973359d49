"""The compiled policies of this process: read from the store when the first session needs them, shared by all others.

An allow-list is megabytes and takes a while to compile: there is one for each baseline, never one for each node. It lives
for as long as a session uses it, and the ones used last a little longer, for nodes that come back.
Refuses nothing: sections were checked when they were pushed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from weakref import WeakValueDictionary

from contract.directive import WantedBaseline
from contract.references import announced_at
from controller.fleet import Fleet
from controller.policies import STRICTEST, Policies, compiled, expecting
from controller.records import SessionRecord

MAX_KEPT: Final = 8
"""Policies that are kept although no session uses them, the newest: some 10 to 50 MB each with a whole release in them."""


class PolicyBook:
    """The compiled sections of this process, by content. On the event loop only."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: WeakValueDictionary[str, Policies] = WeakValueDictionary()
        self._at_sites: WeakValueDictionary[tuple[str, str, str, str], Policies] = WeakValueDictionary()
        self._newest: deque[Policies] = deque(maxlen=MAX_KEPT)
        self._one_at_a_time = asyncio.Lock()

    async def of(self, record: SessionRecord, *, now: float) -> Policies:
        """Return what a node's reports are judged by at `now` (seconds since 1970): the very same object while nothing
        changes. Raises StoreUnavailable when it is not at hand and cannot be read."""
        policies = await self._of_baseline(record.baseline)
        begun = announced_at(record.announced, now)
        if not begun:
            return policies
        baseline = "" if record.baseline is None else record.baseline.sha256
        key = (baseline, record.site, record.announced, begun)
        kept = self._at_sites.get(key)
        if kept is None:
            expected = await self._fleet.expected(record.site, now=now)
            kept = self._at_sites.setdefault(key, expecting(policies, expected))
            self._newest.append(kept)
        return kept

    async def _of_baseline(self, baseline: WantedBaseline | None) -> Policies:
        if baseline is None:
            return STRICTEST
        known = self._known.get(baseline.sha256)
        if known is not None:
            return known
        async with self._one_at_a_time:
            known = self._known.get(baseline.sha256)
            if known is None:
                sections = await self._fleet.sections(baseline.name, baseline.version)
                known = await asyncio.to_thread(compiled, sections)
                self._known[baseline.sha256] = known
                self._newest.append(known)
        return known
