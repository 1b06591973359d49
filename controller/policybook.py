"""The compiled policies of this process: read from the store when the first session needs them, shared by all others.

An allow-list is megabytes and takes a while to compile: it is kept by the content of its baseline, never once a node.
Refuses nothing: sections were checked when they were pushed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from contract.directive import WantedBaseline
from controller.fleet import Fleet
from controller.policies import STRICTEST, Policies, compiled

MAX_KEPT: Final = 32
"""Baselines whose rules are kept: those of a rollout and the ones before it."""


class PolicyBook:
    """The compiled sections of this process, by content. On the event loop only."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: OrderedDict[str, Policies] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def of(self, baseline: WantedBaseline | None) -> Policies:
        """Return what a baseline says. Raises StoreUnavailable when it is not at hand and cannot be read."""
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
