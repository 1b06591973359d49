"""When an inventory is taken: once an hour, and sooner when packages were changed. Beside the machine's thread, and never held on to.

At rest it costs a handful of `stat` calls a report. A digest that the controller has heard of in this session is not said again.
Refuses: to hold up a report. What cannot be read now (an upgrade holds the database, models are still being hashed) waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agent.clock import boottime
from agent.config import RootsConfig
from agent.inventory import machine_facts, model_facts, package_facts, tpm_facts
from agent.packages import PackageDatabase
from agent.tpm import Tpm, TpmUnavailable
from contract.inventory import Fact, Taken, packed

log = logging.getLogger("ringfence.inventory")

EVERY_S: Final = 3600.0
SETTLED_S: Final = 60.0
"""An upgrade changes the database for minutes: not looked at more often than this."""


class Stocktaking:
    """The newest inventory. On the asyncio thread."""

    def __init__(
        self,
        roots: RootsConfig,
        database: PackageDatabase,
        tpm: Tpm,
        models: Callable[[], Awaitable[Mapping[str, str] | None]],
    ) -> None:
        """`models`: contents by path, None while they are still being read."""
        self._roots = roots
        self._database = database
        self._tpm = tpm
        self._models = models
        self._latest: Taken | None = None
        self._stamp: tuple[int, ...] = ()
        self._of_tpm: list[Fact] | None = None
        self._taken_at = -EVERY_S
        self._wait_s = EVERY_S
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def latest(self) -> Taken | None:
        """Return what was taken last, None before the first; begins to take a new one where it is time."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # a bug of ours ends the process
        if self._task is None or self._task.done():
            since_s = boottime() - self._taken_at
            if since_s >= SETTLED_S:
                stamp = await asyncio.to_thread(self._database.stamp)
                if since_s >= self._wait_s or stamp != self._stamp:
                    self._task = asyncio.create_task(self._take(stamp))
        return self._latest

    async def _take(self, stamp: tuple[int, ...]) -> None:
        models = await self._models()
        if models is None:
            return
        self._taken_at, self._stamp = boottime(), stamp
        try:
            self._latest = await asyncio.to_thread(self._gathered, model_facts(models))
            self._failures = 0
        except OSError as error:  # what was taken last stands: "not known now" is not "removed"
            log.warning("inventory: %s", error)
            self._failures += 1
        # A database that cannot be read costs no more than one that can: asked again after minutes, then after an hour.
        self._wait_s = min(EVERY_S, SETTLED_S * 2**self._failures) if self._failures else EVERY_S

    def _gathered(self, models: list[Fact]) -> Taken:
        """Raises OSError."""
        if self._of_tpm is None:
            try:
                self._of_tpm = tpm_facts(self._tpm.properties())
            except TpmUnavailable as error:
                raise OSError(f"TPM: {error}") from None
        facts = [*machine_facts(self._roots), *self._of_tpm, *models, *package_facts(self._database)]
        return packed(facts)
