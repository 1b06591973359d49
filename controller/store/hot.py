"""Statements of the hot path, compiled once for each dialect and run on the driver's own cursor.

Loading a node through SQLAlchemy's execution costs 83 microseconds of processor, 19 this way (one core, SQLite);
every report pays it twice. No result types are applied: the caller knows that SQLite has no booleans. Errors of
the driver come out as they are; the store knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql.expression import ClauseElement

from controller.store import Transaction


class Prepared:
    """One statement with named parameters, all of plain types that the driver takes as they are."""

    __slots__ = ("_compiled", "_statement")

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, list[str] | None, dict[str, object]]] = {}

    def _for(self, tx: Transaction) -> tuple[str, list[str] | None, dict[str, object]]:
        compiled = self._statement.compile(dialect=tx.dialect)
        order: list[str] | None = getattr(compiled, "positiontup", None)
        # What the statement says itself, as in LIMIT 1.
        own = {name: value for name, value in compiled.params.items() if value is not None}
        return self._compiled.setdefault(tx.dialect.name, (str(compiled), order, own))

    def _execute(self, tx: Transaction, cursor: DBAPICursor, values: Mapping[str, object]) -> None:
        text, order, own = self._compiled.get(tx.dialect.name) or self._for(tx)
        if own:
            values = {**own, **values}
        cursor.execute(text, values if order is None else [values[name] for name in order])

    def first(self, tx: Transaction, values: Mapping[str, object]) -> Sequence[object] | None:
        """Run it and return the first row."""
        cursor = tx.connection.cursor()
        try:
            self._execute(tx, cursor, values)
            row: Sequence[object] | None = cursor.fetchone()
            return row
        finally:
            cursor.close()

    def all(self, tx: Transaction, values: Mapping[str, object]) -> list[Sequence[object]]:
        """Run it and return every row."""
        cursor = tx.connection.cursor()
        try:
            self._execute(tx, cursor, values)
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def run(self, tx: Transaction, values: Mapping[str, object]) -> None:
        """Run it for its effect."""
        cursor = tx.connection.cursor()
        try:
            self._execute(tx, cursor, values)
        finally:
            cursor.close()

    def run_each(self, tx: Transaction, many: Sequence[Mapping[str, object]]) -> None:
        """Run it once for each of `many`, for its effect, in one call of the driver."""
        if not many:
            return
        text, order, own = self._compiled.get(tx.dialect.name) or self._for(tx)
        cursor = tx.connection.cursor()
        try:
            if order is None:
                cursor.executemany(text, [{**own, **values} for values in many])
            else:
                cursor.executemany(text, [[{**own, **values}[name] for name in order] for values in many])
        finally:
            cursor.close()
