"""Rows of nodes by no more than a directive says or depends on, many at once.

A push to a whole fleet writes a directive for each node: reading whole rows for it costs four times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct
from sqlalchemy import bindparam, func, select, update

from contract.directive import WantedBaseline
from contract.messages import BaselineRef
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.nodes import FROM
from controller.store.schema import baselines, nodes


class Said(Protocol):
    """What a node has said of itself, as far as a directive depends on it."""

    @property
    def baseline(self) -> BaselineRef | None:
        """Which it holds."""

    @property
    def directive_accepted(self) -> int:
        """The highest number."""

    @property
    def release(self) -> int:
        """See `NodeState.release`."""


class Told(Protocol):
    """A node that a directive is written for. `NodeRow` is one too."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def directive_number(self) -> int:
        """Of the directive issued last."""

    @property
    def last_report_at(self) -> float | None:
        """When it was heard last."""

    @property
    def baseline(self) -> WantedBaseline | None:
        """Chosen for it, else for its site."""

    @property
    def state(self) -> Said:
        """What it has said of itself."""


class _State(Struct, frozen=True):
    baseline: BaselineRef | None = None
    directive_accepted: int = 0
    release: int = 0


class Addressee(Struct, frozen=True):
    """A node and whose session it has."""

    node: str
    site: str
    directive_number: int
    directive_due: bool
    last_report_at: float | None
    session_holder: str
    session_epoch: int
    state: _State
    baseline: WantedBaseline | None


_COLUMNS = (
    *(nodes.c[name] for name in ("node", "site", "directive_number", "directive_due", "last_report_at")),
    *(nodes.c[name] for name in ("session_holder", "session_epoch", "state")),
    *(baselines.c[name] for name in ("name", "version", "sha256")),
)
# Always in this order, so that two who lock some of the same nodes wait for each other at most once.
_SELECT = select(*_COLUMNS).select_from(FROM).order_by(nodes.c.node).with_for_update(of=nodes)
_LISTED = func.json_each(bindparam("wanted")).table_valued("value")
_OF_LIST = {
    "sqlite": Prepared(_SELECT.where(nodes.c.node.in_(select(_LISTED.c.value)))),
    "postgresql": Prepared(_SELECT.where(nodes.c.node == func.any(bindparam("wanted")))),
}
_ISSUED = Prepared(
    update(nodes)
    .where(nodes.c.node == bindparam("of_node"))
    .values(
        directive_number=bindparam("to_number"),
        directive_issued_at=bindparam("to_issued"),
        directive_due=bindparam("to_due"),
    )
)
_decode = msgspec.json.Decoder(_State).decode


def load(tx: Transaction, names: Sequence[str]) -> list[Addressee]:
    """Read those of these nodes that there are, by name; nobody else changes them until this transaction ends."""
    engine = tx.dialect.name
    wanted = msgspec.json.encode(names).decode() if engine == "sqlite" else list(names)
    return [_addressee(row) for row in _OF_LIST[engine].all(tx, {"wanted": wanted})]


def _addressee(row: Sequence[object]) -> Addressee:
    *plain, state, name, version, sha256 = row
    node, site, number, due, heard_at, holder, epoch = plain
    chosen = None
    if name is not None:
        chosen = WantedBaseline(name=name, version=version, sha256=sha256)  # type: ignore[arg-type]
    return Addressee(node, site, number, bool(due), heard_at, holder, epoch, _decode(state), chosen)  # type: ignore[arg-type]


def set_issued(tx: Transaction, numbers: Mapping[str, int], issued: float) -> None:
    """Directives were written, each with its number."""
    values = [
        {"of_node": node, "to_number": number, "to_issued": issued, "to_due": False}
        for node, number in numbers.items()
    ]
    _ISSUED.run_each(tx, values)
