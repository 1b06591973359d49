"""Notices between controllers over one PostgreSQL: what a transaction touched, told to the others when it commits.

A notice is a hint, never the news itself: who hears it looks at the rows. One that is lost delays, and a look at everything
follows every reconnection. SQLite has one controller: nothing is collected there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.engine import Connection

CHANNEL = "ringfence"
MAX_BYTES = 7900
"""PostgreSQL takes less than 8000 (NOTIFY, payload)."""
_KEY = "ringfence.notice"


class Notice(Struct, omit_defaults=True):
    """Who tells it, and what to look at; `everything` where the names would not fit."""

    by: str
    due: list[str] = []
    """Nodes whose directive is due."""
    ask: list[str] = []
    """Nodes whose session record changed: they should report now."""
    taken: dict[str, int] = {}
    """Nodes whose session is held by `by` now, and its epoch."""
    asked: list[str] = []
    """Controllers that are asked what nodes of theirs have open."""
    told: list[str] = []
    """Such questions to which there are answers."""
    everything: bool = False


_decode = msgspec.json.Decoder(Notice).decode


def begin(tx: Connection) -> None:
    """Forget what a transaction before, rolled back perhaps, had collected."""
    tx.info.pop(_KEY, None)


def held(tx: Connection) -> Notice | None:
    """Return what is collected so far, to be put back where what follows is undone."""
    notice: Notice | None = tx.info.get(_KEY)
    return None if notice is None else copy.deepcopy(notice)


def put_back(tx: Connection, before: Notice | None) -> None:
    """Forget what was collected since `held`."""
    if before is None:
        tx.info.pop(_KEY, None)
    else:
        tx.info[_KEY] = before


def _collecting(tx: Connection) -> Notice | None:
    if tx.dialect.name != "postgresql":
        return None
    notice: Notice = tx.info.setdefault(_KEY, Notice(by=""))
    return notice


def rang(tx: Connection) -> None:
    """There are new events."""
    _collecting(tx)


def due(tx: Connection, nodes: Iterable[str]) -> None:
    """The directive of these nodes is due."""
    if (notice := _collecting(tx)) is not None:
        notice.due.extend(nodes)


def ask(tx: Connection, nodes: Iterable[str]) -> None:
    """What a session holds of these nodes is out of date."""
    if (notice := _collecting(tx)) is not None:
        notice.ask.extend(nodes)


def taken(tx: Connection, sessions: Mapping[str, int]) -> None:
    """These sessions were taken over from another controller."""
    if (notice := _collecting(tx)) is not None:
        notice.taken.update(sessions)


def asked(tx: Connection, holders: Iterable[str]) -> None:
    """These controllers are asked what nodes of theirs have open."""
    if (notice := _collecting(tx)) is not None:
        notice.asked.extend(holders)


def told(tx: Connection, question: str) -> None:
    """There are answers to this question."""
    if (notice := _collecting(tx)) is not None:
        notice.told.append(question)


def send(tx: Connection, by: str) -> None:
    """Notify with this transaction: PostgreSQL delivers it at commit, or not at all."""
    notice: Notice | None = tx.info.pop(_KEY, None)
    if notice is None:
        return
    notice.by = by
    notice.due, notice.ask = list(dict.fromkeys(notice.due)), list(dict.fromkeys(notice.ask))
    notice.asked, notice.told = list(dict.fromkeys(notice.asked)), list(dict.fromkeys(notice.told))
    payload = msgspec.json.encode(notice)
    if len(payload) > MAX_BYTES:
        payload = msgspec.json.encode(Notice(by=by, everything=True))
    tx.execute(
        text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload.decode()}
    )


def read(untrusted: str) -> Notice | None:
    """Return what was told; None for what is no notice: anyone with the database's password may NOTIFY."""
    try:
        return _decode(untrusted)
    except msgspec.DecodeError:
        return None
