"""Rows of questions to nodes whose sessions other controllers hold: what have they open? One row for each node.

Whoever asks writes the row, who holds the node's session writes the answer into it, and who asked takes it away. Times are by the
database's clock. Only over PostgreSQL is there another controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, delete, func, insert, literal, or_, select, update

from controller.store import Transaction, notices
from controller.store.replicas import LEASE_S
from controller.store.schema import controllers, nodes, socket_questions

KEPT_S: Final = 30.0
"""Nobody waits so long for an answer: what is left then is of one who asked and died."""
TAKEN_AT_ONCE: Final = 16
"""Answers: 8 MiB where each is as long as it may be."""

_ASKED = socket_questions.c
_COLUMNS = ("question", "node", "holder", "expires_at")


def ask(tx: Transaction, question: str, names: Sequence[str], own: str, at: float) -> list[str]:
    """Ask those of these nodes whose sessions other controllers hold that live; returns which. What has expired goes."""
    forget(tx, at)
    held = (
        select(literal(question), nodes.c.node, nodes.c.session_holder, literal(at + KEPT_S))
        .select_from(nodes.join(controllers, controllers.c.id == nodes.c.session_holder))
        .where(
            nodes.c.node == func.any(bindparam("wanted")),
            nodes.c.connected,
            nodes.c.session_holder != own,
            controllers.c.seen_at > at - LEASE_S,
        )
    )
    made = insert(socket_questions).from_select(_COLUMNS, held).returning(_ASKED.node, _ASKED.holder)
    rows = tx.execute(made, {"wanted": list(names)}).all()
    if rows:
        notices.asked(tx, {row.holder for row in rows})
    return [row.node for row in rows]


def asked_of(tx: Transaction, own: str, at: float) -> dict[str, list[str]]:
    """Which nodes one is to ask, by question."""
    found: dict[str, list[str]] = {}
    unanswered = _ASKED.report.is_(None), _ASKED.why.is_(None)
    wanted = select(_ASKED.question, _ASKED.node).where(
        _ASKED.holder == own, _ASKED.expires_at > at, *unanswered
    )
    for row in tx.execute(wanted):
        found.setdefault(row.question, []).append(row.node)
    return found


def answer(tx: Transaction, question: str, told: Mapping[str, bytes | str], own: str) -> None:
    """Write what these nodes told, or in words why they told nothing. Only where it was asked of `own`, and is waited for."""
    tx.execute(
        update(socket_questions)
        .where(_ASKED.question == question, _ASKED.node == bindparam("of_node"), _ASKED.holder == own)
        .values(report=bindparam("to_report"), why=bindparam("to_why")),
        [
            {
                "of_node": node,
                "to_report": said if isinstance(said, bytes) else None,
                "to_why": said if isinstance(said, str) else None,
            }
            for node, said in told.items()
        ],
    )
    notices.told(tx, question)


def take(tx: Transaction, question: str) -> dict[str, bytes | str]:
    """Take some of the answers that are there; nothing when there is none."""
    answered = or_(_ASKED.report.is_not(None), _ASKED.why.is_not(None))
    some = select(_ASKED.node, _ASKED.report, _ASKED.why).where(_ASKED.question == question, answered)
    rows = tx.execute(some.limit(TAKEN_AT_ONCE)).all()
    if rows:
        gone = _ASKED.question == question, _ASKED.node == func.any(bindparam("taken"))
        tx.execute(delete(socket_questions).where(*gone), {"taken": [row.node for row in rows]})
    return {row.node: row.why if row.report is None else row.report for row in rows}


def drop(tx: Transaction, question: str) -> None:
    """Wait no more."""
    tx.execute(delete(socket_questions).where(_ASKED.question == question))


def forget(tx: Transaction, at: float) -> None:
    """Drop what nobody waits for."""
    tx.execute(delete(socket_questions).where(_ASKED.expires_at <= at))
