"""The compiled policies of this process: read from the store when the first session needs them, shared by all others.

An allow-list is megabytes and takes a while to compile: it is kept by the content of its baseline, never once a node.
Refuses nothing: sections were checked when they were pushed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from contract.directive import WantedBaseline
from contract.references import announced_at
from controller.fleet import Fleet
from controller.policies import STRICTEST, Policies, compiled, expecting
from controller.records import SessionRecord

MAX_KEPT: Final = 32
"""Baselines whose rules are kept: those of a rollout and the ones before it."""
MAX_SITES_KEPT: Final = 1024
"""Sites for which something is announced and whose nodes report at this time."""


class PolicyBook:
    """The compiled sections of this process, by content. On the event loop only."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: OrderedDict[str, Policies] = OrderedDict()
        self._at_sites: OrderedDict[tuple[str, str, str, str], Policies] = OrderedDict()
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
            while len(self._at_sites) > MAX_SITES_KEPT:
                self._at_sites.popitem(last=False)
        return kept

    async def _of_baseline(self, baseline: WantedBaseline | None) -> Policies:
        if baseline is None:
            return STRICTEST
        kept = self._kept.get(baseline.sha256)
        if kept is not None:
            return kept
        async with self._one_at_a_time:
            kept = self._kept.get(baseline.sha256)
            if kept is None:
                sections = await self._fleet.sections(baseline.name, baseline.version)
                kept = await asyncio.to_thread(compiled, sections)
                self._kept[baseline.sha256] = kept
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return kept
