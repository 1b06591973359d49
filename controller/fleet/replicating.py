"""The use cases of several controllers over one database. A part of `controller.fleet.Fleet`, which see.

A controller is a process with a lease in the database. Whose lease has run out is dead, and another one ends its sessions;
one that was only cut off from the database comes back, and shows its sessions again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from controller.fleet import isolation, restoring
from controller.fleet.isolation import Written
from controller.policy import FleetSettings
from controller.store import Store, Transaction, events, questions, replicas, restores

WRITTEN_AT_ONCE: Final = 4 * 1024 * 1024
"""Bytes of answers in one transaction: others wait for the store meanwhile."""


class Replicating:
    """This controller among others over one store."""

    _store: Store
    _settings: FleetSettings

    async def start(self, *, name: str = "", now: float) -> None:
        """Call once before listening: enter the list of controllers, and say where a restore waits for a person."""
        await self._store.run(lambda tx: _enter(tx, self._store.identity, self._settings, name, now))

    async def leave(self) -> None:
        """End every session and leave the list. Others need not wait for the lease to run out."""
        await self._store.run(lambda tx: replicas.leave(tx, self._store.identity))

    async def beat(self, held: Mapping[str, int], *, name: str = "", now: float) -> list[str]:
        """Keep the lease, bury who is dead, and return the nodes of ours whose directive is due.

        `held`: epochs of the sessions that are open here, by node.
        """
        return await self._store.run(
            lambda tx: _beat(tx, self._store.identity, self._settings, held, name=name, now=now)
        )

    async def lost_sessions(self, held: Mapping[str, int]) -> list[str]:
        """Which of these sessions are another controller's by now."""
        return await self._store.run(lambda tx: replicas.lost(tx, self._store.identity, held))

    async def end_session(self, node: str, *, epoch: int) -> None:
        """The socket is gone; silence is judged by `sweep`. A later session of the node, anywhere, stays."""
        await self._store.run(lambda tx: replicas.end(tx, node, self._store.identity, epoch))

    async def directives_to(
        self, held: Mapping[str, int], *, now: float, only_due: bool = False, urgent: bool = False
    ) -> Written:
        """New directives for those of these sessions (node to epoch) that are still ours, in one transaction."""
        return await self._store.run(
            lambda tx: isolation.directives(
                tx,
                self._settings,
                list(held),
                now=now,
                ours=(self._store.identity, held),
                only_due=only_due,
            ),
            urgent=urgent,
        )

    async def ask_elsewhere(self, question: str, nodes: Sequence[str], *, now: float) -> set[str]:
        """Ask of those of these nodes that are connected to other controllers what they have open; returns which.

        Nobody on SQLite, where there is no other controller. No part of an act: a plan is made or not, whoever was asked.
        """
        if not nodes or self._store.dialect != "postgresql":
            return set()
        own = self._store.identity
        return set(
            await self._store.look(
                lambda tx: questions.ask(tx, question, nodes, own, replicas.clock(tx, now))
            )
        )

    async def asked_here(self, *, now: float) -> dict[str, list[str]]:
        """Which nodes we are to ask for other controllers, by question."""
        own = self._store.identity
        return await self._store.look(lambda tx: questions.asked_of(tx, own, replicas.clock(tx, now)))

    async def answer_question(self, question: str, told: Mapping[str, bytes | str]) -> None:
        """What nodes told of which another controller asked us: as it came, or in words why they told nothing."""
        own = self._store.identity
        for some in _portions(told):
            await self._store.look(lambda tx, some=some: questions.answer(tx, question, some, own))  # type: ignore[misc]

    async def take_answers(self, question: str) -> dict[str, bytes | str]:
        """Some of the answers that are there, not to be had again; nothing when there is none."""
        return await self._store.look(lambda tx: questions.take(tx, question))

    async def drop_question(self, question: str) -> None:
        """Nobody waits for its answers any more."""
        await self._store.look(lambda tx: questions.drop(tx, question))

    async def forget_questions(self, *, now: float) -> None:
        """Drop what controllers asked that have died since. Call every hour."""
        await self._store.run(lambda tx: questions.forget(tx, replicas.clock(tx, now)))


def _portions(told: Mapping[str, bytes | str]) -> Iterator[dict[str, bytes | str]]:
    """Cut into what is written at once."""
    some: dict[str, bytes | str] = {}
    size = 0
    for node, said in told.items():
        if some and size + len(said) > WRITTEN_AT_ONCE:
            yield some
            some, size = {}, 0
        some[node] = said
        size += len(said)
    if some:
        yield some


def _enter(tx: Transaction, own: str, settings: FleetSettings, name: str, now: float) -> None:
    replicas.enter(tx, own, name, replicas.clock(tx, now), settings.protected_addresses)
    restore = restores.unconfirmed(tx)
    if restore is not None:
        restoring.tell(tx, restore, now)


def _beat(
    tx: Transaction, own: str, settings: FleetSettings, held: Mapping[str, int], *, name: str, now: float
) -> list[str]:
    at = replicas.clock(tx, now)
    if not replicas.seen(tx, own, at):
        replicas.enter(tx, own, name, at, settings.protected_addresses)
        replicas.resume(tx, own, held)
    for dead in replicas.bury(tx, at):
        text = f"controller {dead or 'without a name'} was not seen for {replicas.LEASE_S:g} s: its nodes go to others"
        events.add(tx, "controller.lost", "warning", text[:2048], now=now)
    return [node for node in replicas.due(tx, own) if node in held]
