"""This controller's part among several over one database: hearing the others, keeping its lease.

What another controller tells is a hint: what is done about it is looked up. So a notice that is lost, doubled or forged only
makes us look, and what was missed is found with the next beat.
"""

from __future__ import annotations

import asyncio
import logging
import time

from controller.asking import Asking
from controller.bell import Bell
from controller.fleet import Fleet
from controller.sessions import Sessions
from controller.store import StoreUnavailable, hearing
from controller.store.notices import Notice

log = logging.getLogger(__name__)

BEAT_S = 3.0
AGAIN_S = 0.5
"""What was told while the database did not answer is looked up after this pause, until it answers."""
_EVERYTHING = Notice(by="", everything=True)


class Replica:
    """`hear` for as long as the process runs, `beat` every BEAT_S."""

    def __init__(
        self,
        fleet: Fleet,
        sessions: Sessions,
        asking: Asking,
        bell: Bell,
        *,
        name: str,
        own: str,
        url: str,
    ) -> None:
        """`own` as the store has it (Store.identity), `url` its database's."""
        self._fleet = fleet
        self._sessions = sessions
        self._asking = asking
        self._bell = bell
        self._name = name
        self._own = own
        self._url = url

    async def hear(self) -> None:
        """Act on what other controllers tell. Ends at once on SQLite, where there is no other."""
        async for heard in hearing.hear(self._url, own=self._own):
            self._bell.ring()
            self._asking.heard(heard)
            notice = heard
            while True:
                try:
                    await self._act(notice, time.time())
                    break
                except StoreUnavailable:
                    log.warning(
                        "the database does not answer; what other controllers told is looked up later"
                    )
                await asyncio.sleep(AGAIN_S)
                notice = _EVERYTHING  # of the one that failed, it is not known how far it came

    async def beat(self) -> None:
        """Keep the lease, and send what is due to nodes that are connected here. Raises StoreUnavailable."""
        now = time.time()
        await self._sessions.say_ends()
        due = await self._fleet.beat(self._sessions.held(), name=self._name, now=now)
        if due:
            await self._sessions.tell(due, now, only_due=True)

    async def _act(self, notice: Notice, now: float) -> None:
        if notice.everything:
            held = self._sessions.held()
            lost = await self._fleet.lost_sessions(held)
            await self._sessions.give_up({node: held[node] + 1 for node in lost})
            await self.beat()
            return
        await self._sessions.give_up(notice.taken)
        await self._sessions.tell(notice.due, now, only_due=True)
        await self._sessions.challenge(notice.ask, now)
