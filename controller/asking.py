"""Asking nodes what they have open, at whichever controller they are connected.

Nodes that are connected here are asked over their sessions. For the others a question is left in the database; the controllers that
hold their sessions ask them and write what they told as it came, and who asked reads it as if it came from the node itself.

Refuses to do: wait for long. A controller that is dead, cut off or of a version before is one that did not answer in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence

from contract.errors import Rejected
from contract.sockets import SocketReport, read_sockets
from controller.fleet import Fleet
from controller.session import NOT_CONNECTED, NOT_IN_TIME, SOCKETS_S
from controller.sessions import Sessions
from controller.store import StoreUnavailable
from controller.store.notices import Notice

log = logging.getLogger(__name__)

ANSWERS_S = SOCKETS_S + 2.0
"""So long a question waits: what a node may take, and the ways through the database."""
LOOK_AGAIN_S = 1.0
"""Answers are looked for so often where no notice of them comes."""
GATHER_S = 0.25
"""Answers are written so often while some nodes have not answered yet."""
NOT_TOLD = "the controller that it is connected to did not answer in time"


class Asking:
    """Both sides: `sockets_of` asks, `answer` is a duty for as long as the process runs."""

    def __init__(self, fleet: Fleet, sessions: Sessions, *, own: str) -> None:
        """`own` as the store has it (Store.identity)."""
        self._fleet = fleet
        self._sessions = sessions
        self._own = own
        self._asked = asyncio.Event()
        """Another controller has asked, perhaps."""
        self._told: dict[str, asyncio.Event] = {}
        """Own questions that wait, and whether there are answers, perhaps."""
        self._answering: set[str] = set()
        """Questions of others."""

    def heard(self, notice: Notice) -> None:
        """Take note of what another controller tells: a hint, what is asked and told is looked up."""
        if notice.everything or self._own in notice.asked:
            self._asked.set()
        for question, news in self._told.items():
            if notice.everything or question in notice.told:
                news.set()

    async def sockets_of(self, nodes: Sequence[str]) -> dict[str, SocketReport | str]:
        """What these nodes have open now; in words why it is not known of those that do not tell. Raises StoreUnavailable."""
        held = self._sessions.held()
        here = [node for node in nodes if node in held]
        told, elsewhere = await asyncio.gather(
            asyncio.gather(*(self._here(node) for node in here)),
            self._elsewhere([node for node in nodes if node not in held]),
        )
        return {**dict(zip(here, told, strict=True)), **elsewhere}

    async def answer(self) -> None:
        """Ask nodes that are connected here, for other controllers."""
        async with asyncio.TaskGroup() as answering:
            while True:
                await self._asked.wait()
                self._asked.clear()
                try:
                    asked = await self._fleet.asked_here(now=time.time())
                except StoreUnavailable:
                    log.warning("the database does not answer; a plan of another controller does without")
                    continue
                for question, nodes in asked.items():
                    if question not in self._answering:
                        self._answering.add(question)
                        answering.create_task(self._answer(question, nodes))

    async def _here(self, node: str) -> SocketReport | str:
        return await _read(await self._sessions.sockets_of(node))

    async def _elsewhere(self, nodes: Sequence[str]) -> dict[str, SocketReport | str]:
        found: dict[str, SocketReport | str] = dict.fromkeys(nodes, NOT_CONNECTED)
        question, news, waiting = secrets.token_hex(16), asyncio.Event(), set[str]()
        self._told[question] = news
        try:
            waiting |= await self._fleet.ask_elsewhere(question, nodes, now=time.time())
            found |= dict.fromkeys(waiting, NOT_TOLD)
            until = time.monotonic() + ANSWERS_S
            while waiting and (left_s := until - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, LOOK_AGAIN_S)):
                        await news.wait()
                news.clear()
                while told := await self._fleet.take_answers(question):
                    for node in waiting & told.keys():
                        found[node] = await _read(told[node])
                    waiting -= told.keys()
        finally:
            del self._told[question]
            if waiting:
                with contextlib.suppress(StoreUnavailable):  # it expires by itself
                    await self._fleet.drop_question(question)
        return found

    async def _answer(self, question: str, nodes: Sequence[str]) -> None:
        asking = {asyncio.create_task(self._sessions.sockets_of(node)): node for node in nodes}
        pending, until = set(asking), time.monotonic() + SOCKETS_S
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=GATHER_S)
                told, late = {asking[task]: task.result() for task in done}, time.monotonic() > until
                if late:  # some do not even take the question
                    told |= dict.fromkeys((asking[task] for task in pending), NOT_IN_TIME)
                await self._fleet.answer_question(question, told)
                if late:
                    break
        except StoreUnavailable:
            log.warning("the database does not answer; a plan of another controller does without")
        finally:
            for task in pending:
                task.cancel()
            self._answering.discard(question)


async def _read(untrusted: bytes | str) -> SocketReport | str:
    """Return what a node told; words stay words."""
    if isinstance(untrusted, str):
        return untrusted
    try:
        return await asyncio.to_thread(read_sockets, untrusted)  # milliseconds where it is long
    except Rejected as rejected:
        return f"what it told was refused: {rejected.code}"
